/* The kernels of `dyadic.c` for GELU, in float32: f(x) = x P(x), with P the normal distribution function.

   difference   out = scale (f(a + u d) - f(a - v d))
   dyad         mean = f(a - v d) + alpha delta,  delta = f(a + u d) - f(a - v d)
   settle       state = f(a) + d,  signal = f'(a) d

   With E = exp(-x²/2) the density is p(x) = E / sqrt(2 pi), and P(-|x|) = E R(|x|), where R is half the scaled complementary
   error function of |x| / sqrt 2: a polynomial in t = 1 / (1 + 0.21 |x|), fitted to 2e-8. Beyond 14 the density is no float32.
   All of it is what compilers vectorise: no calls, no branches. NaN stays NaN. */

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define FMA(x, y, z) __builtin_fmaf(x, y, z)
#else
#define FMA(x, y, z) ((x) * (y) + (z))
#endif

typedef struct { float P, p, x; } normal;

static inline float exp_of_negative(float exponent) {
    float y = exponent < -87 ? -87 : exponent;
    float n = FMA(y, 1.44269504f, 12582912.0f) - 12582912.0f;           /* to the nearest whole number */
    float r = FMA(n, 2.12194440e-4f, FMA(n, -0.693359375f, y));
    float e = FMA(r, 0.00138146131f, 0.00836870996f);
    e = FMA(r, e, 0.0416683874f);
    e = FMA(r, e, 0.166665207f);
    e = FMA(r, e, 0.499999935f);
    e = FMA(r * r, e, 1 + r);
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return exponent < -87 ? 0 : e * power;                              /* else f(-inf) were no NaN, as f(-1e38) no zero */
}

static inline normal normal_at(float x) {
    x = x < -14 ? -14 : x;
    x = x > 14 ? 14 : x;
    float size = x < 0 ? -x : x, t = 1 / FMA(0.21f, size, 1), E = exp_of_negative(-0.5f * x * x);
    float R = FMA(t, -0.0716560653f, 0.283587288f);
    R = FMA(t, R, -0.330250564f);
    R = FMA(t, R, 0.349397599f);
    R = FMA(t, R, -0.0939227356f);
    R = FMA(t, R, 0.124871629f);
    R = FMA(t, R, 0.0691924627f);
    R = FMA(t, R, 0.0850688152f);
    R = FMA(t, R, 0.0837115783f);
    float tail = E * R * t;
    normal found = { x < 0 ? tail : 1 - tail, E * 0.398942280f, x };
    return found;
}

static inline float gelu(float x) { return x * normal_at(x).P; }

/* f(p) - f(m) by its Taylor series about the middle x, h = p - m: nothing cancels. For |h| < 1/4 the next term is below rounding,
   as is that of (f(p) + f(m)) / 2 = f(x) + `bend`. */
#define NEAR 0.25f

static inline float gelu_span(normal at, float h) {
    float x = at.x, square = x * x, hh = h * h;
    float third = (square - 4) * (1.0f / 24), fifth = FMA(square, square - 11, 18) * (1.0f / 1920);
    return h * FMA(x * at.p, FMA(hh, FMA(hh, fifth, third), 1), at.P);
}

static inline float gelu_bend(normal at, float h) {
    float square = at.x * at.x, hh = h * h;
    return hh * at.p * FMA(hh, FMA(square, 7 - square, -4) * (1.0f / 384), (2 - square) * (1.0f / 8));
}

/* The bits of |h|, which are in the order of |h|: compilers vectorise the largest of whole numbers. NaN is beyond all. */
static inline uint32_t size_bits(float h) {
    uint32_t bits;
    memcpy(&bits, &h, 4);
    return bits & 0x7fffffff;
}

#define BLOCK 1024

/* In blocks, each of them near or far: whether two f are a Taylor series apart. */
#define IN_BLOCKS(WIDEN, near, far)                                                                        \
    const float u = (float)up, v = (float)down, middle = 0.5f * (u - v), span = u + v;                     \
    _Pragma("omp parallel for schedule(static) num_threads(threads) if (parallel : threads > 1)")         \
    for (int64_t begin = 0; begin < n; begin += BLOCK) {                                                   \
        const int64_t end = begin + BLOCK < n ? begin + BLOCK : n;                                         \
        uint32_t most = 0;                                                                                 \
        _Pragma("omp simd reduction(max : most)")                                                         \
        for (int64_t i = begin; i < end; i++) {                                                            \
            uint32_t h = size_bits(span * WIDEN(d[i]));                                                    \
            most = h > most ? h : most;                                                                    \
        }                                                                                                  \
        if (most < size_bits(NEAR)) {                                                                      \
            _Pragma("omp simd")                                                                           \
            for (int64_t i = begin; i < end; i++) {                                                        \
                float d_ = WIDEN(d[i]), h = span * d_, x = WIDEN(a[i]) + middle * d_;                      \
                normal at = normal_at(x);                                                                  \
                float delta = gelu_span(at, h);                                                            \
                near                                                                                       \
            }                                                                                              \
        } else {                                                                                           \
            _Pragma("omp simd")                                                                           \
            for (int64_t i = begin; i < end; i++) {                                                        \
                float a_ = WIDEN(a[i]), d_ = WIDEN(d[i]), minus = gelu(a_ - v * d_);                       \
                float delta = gelu(a_ + u * d_) - minus;                                                   \
                far                                                                                        \
            }                                                                                              \
        }                                                                                                  \
    }

#define GELU_KERNELS(NAME, S, WIDEN, NARROW)                                                               \
    void gelu_difference_##NAME(int kind, double c0, double c1, const S *a, const S *d, S *out,            \
                                double up, double down, double scale_, int64_t n, int threads) {           \
        const float scale = (float)scale_;                                                                 \
        IN_BLOCKS(WIDEN, out[i] = NARROW(scale * delta);, out[i] = NARROW(scale * delta);)                 \
    }                                                                                                      \
    void gelu_dyad_##NAME(int kind, double c0, double c1, const S *a, const S *d, S *mean, S *difference,  \
                          double up, double down, double alpha_, int64_t n, int threads) {                 \
        const float alpha = (float)alpha_, lean = alpha - 0.5f;                                            \
        IN_BLOCKS(WIDEN,                                                                                   \
                  mean[i] = NARROW(x * at.P + gelu_bend(at, h) + lean * delta); difference[i] = NARROW(delta);, \
                  mean[i] = NARROW(minus + alpha * delta); difference[i] = NARROW(delta);)                 \
    }
GELU_KERNELS(float32, float, SAME, SAME)
GELU_KERNELS(bfloat16, uint16_t, widen_bf16, narrow_bf16)

void gelu_settle_float32(int kind, double c0, double c1, const float *a, const float *d, float *state, float *signal,
                         int wants_state, int64_t n, int threads) {
    if (wants_state)
        LOOP(normal at = normal_at(a[i]); float d_ = d[i]; state[i] = a[i] * at.P + d_; signal[i] = FMA(at.x, at.p, at.P) * d_;)
    else
        LOOP(normal at = normal_at(a[i]); signal[i] = FMA(at.x, at.p, at.P) * d[i];)
}

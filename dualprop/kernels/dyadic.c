/* One pass over memory for a dyad: from drive a and feedback d, elementwise, the states f(a + u d) and f(a - v d).

   difference   out = scale (f(a + u d) - f(a - v d))
   dyad         mean = f(a - v d) + alpha delta,  delta = f(a + u d) - f(a - v d)

   And for a unit of a predictive coding network, whose f is the projection onto [low, high] (RELU: low 0, no high):

   settle       state = f(a + d),  signal = f'(a) clip(d, low - a, high - a), which is f'(a) (state - a)

   For the states of predictive coding by gradient steps, which move by `move` from the forward pass's, `free`:

   error        error = move - (f(a) - free),  signal = f'(a) error
   move         new_speed = keep speed + step (pull - error),  new_move = move + new_speed,  state = free + new_move

   f is piecewise linear: RELU max(0, x), LEAKY x or slope x, CLIP to [low, high] (`gelu.h` is for GELU). Where both arguments lie on one piece the
   difference is its slope times (u + v) d, so that nothing cancels however small d is against a. bfloat16 is computed in
   float32 and rounded once, to nearest even. NaN stays NaN. Outputs may be the inputs.

   An `if` that does not say `parallel` would be the simd's too: one thread would walk scalars, twelve times as slow. */
#include <stdint.h>
#include <string.h>

enum { RELU, LEAKY, CLIP };


static inline float widen_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

static inline uint16_t narrow_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(x != x ? 0x7fc0 : rounded);
}

#define SAME(x) (x)

#define ACTIVATIONS(T)                                                                                     \
    static inline T relu_##T(T x, T c0, T c1) { return x < 0 ? 0 : x; }                                    \
    static inline T leaky_##T(T x, T c0, T c1) { return x < 0 ? c0 * x : x; }                              \
    static inline T clip_##T(T x, T c0, T c1) { T y = x < c0 ? c0 : x; return y > c1 ? c1 : y; }           \
    static inline T relu_delta_##T(T p, T m, T span, T c0, T c1) {                                         \
        T far = relu_##T(p, c0, c1) - relu_##T(m, c0, c1);                                                 \
        return (p > 0) & (m > 0) ? span : far;                                                             \
    }                                                                                                      \
    static inline T leaky_delta_##T(T p, T m, T span, T c0, T c1) {                                        \
        T far = leaky_##T(p, c0, c1) - leaky_##T(m, c0, c1);                                               \
        T near = (p > 0) & (m > 0) ? span : far;                                                           \
        return (p < 0) & (m < 0) ? c0 * span : near;                                                       \
    }                                                                                                      \
    static inline T clip_delta_##T(T p, T m, T span, T c0, T c1) {                                         \
        T far = clip_##T(p, c0, c1) - clip_##T(m, c0, c1);                                                 \
        return (p > c0) & (m > c0) & (p < c1) & (m < c1) ? span : far;                                     \
    }
ACTIVATIONS(float)
ACTIVATIONS(double)

#define LOOP(...)                                                                                          \
    _Pragma("omp parallel for simd schedule(static) num_threads(threads) if (parallel : threads > 1)")    \
    for (int64_t i = 0; i < n; i++) { __VA_ARGS__ }

#define STATES(S, T, WIDEN, f)                                                                             \
    T a_ = WIDEN(a[i]), d_ = WIDEN(d[i]);                                                                  \
    T p = a_ + u * d_, m = a_ - v * d_;                                                                    \
    T delta = f##_delta_##T(p, m, (u + v) * d_, c0, c1);

#define KERNELS(NAME, S, T, WIDEN, NARROW)                                                                 \
    void difference_##NAME(int kind, double first, double second, const S *a, const S *d, S *out,          \
                           double up, double down, double scale_, int64_t n, int threads) {                \
        const T c0 = (T)first, c1 = (T)second, u = (T)up, v = (T)down, scale = (T)scale_;                  \
        switch (kind) {                                                                                    \
        case RELU: LOOP(STATES(S, T, WIDEN, relu) out[i] = NARROW(scale * delta);) break;                  \
        case LEAKY: LOOP(STATES(S, T, WIDEN, leaky) out[i] = NARROW(scale * delta);) break;                \
        case CLIP: LOOP(STATES(S, T, WIDEN, clip) out[i] = NARROW(scale * delta);) break;                  \
        }                                                                                                  \
    }                                                                                                      \
    void dyad_##NAME(int kind, double first, double second, const S *a, const S *d, S *mean, S *difference,\
                     double up, double down, double alpha_, int64_t n, int threads) {                      \
        const T c0 = (T)first, c1 = (T)second, u = (T)up, v = (T)down, alpha = (T)alpha_;                  \
        switch (kind) {                                                                                    \
        case RELU: LOOP(STATES(S, T, WIDEN, relu)                                                          \
            mean[i] = NARROW(relu_##T(m, c0, c1) + alpha * delta); difference[i] = NARROW(delta);) break;  \
        case LEAKY: LOOP(STATES(S, T, WIDEN, leaky)                                                        \
            mean[i] = NARROW(leaky_##T(m, c0, c1) + alpha * delta); difference[i] = NARROW(delta);) break; \
        case CLIP: LOOP(STATES(S, T, WIDEN, clip)                                                          \
            mean[i] = NARROW(clip_##T(m, c0, c1) + alpha * delta); difference[i] = NARROW(delta);) break;  \
        }                                                                                                  \
    }
/* NaN of either goes on, as in torch.maximum and minimum. */
#define GREATER(x, y) ((x) > (y) || (x) != (x) ? (x) : (y))
#define LESS(x, y) ((x) < (y) || (x) != (x) ? (x) : (y))

#define RELU_ERROR GREATER(d_, 0 - a_)
#define RELU_INSIDE (a_ > 0)
#define CLIP_ERROR LESS(GREATER(d_, c0 - a_), c1 - a_)
#define CLIP_INSIDE ((a_ > c0) & (a_ < c1))

#define SETTLED(T, F)                                                                                      \
    T a_ = a[i]; T d_ = d[i]; T error = F##_ERROR;                                                         \
    signal[i] = error * (T)F##_INSIDE;

#define SETTLES(NAME, T)                                                                                   \
    void settle_##NAME(int kind, double first, double second, const T *a, const T *d, T *state, T *signal, \
                       int wants_state, int64_t n, int threads) {                                          \
        const T c0 = (T)first, c1 = (T)second;                                                             \
        switch (2 * kind + wants_state) {                                                                  \
        case 2 * RELU: LOOP(SETTLED(T, RELU)) break;                                                       \
        case 2 * RELU + 1: LOOP(SETTLED(T, RELU) state[i] = relu_##T(a_ + d_, c0, c1);) break;             \
        case 2 * CLIP: LOOP(SETTLED(T, CLIP)) break;                                                       \
        case 2 * CLIP + 1: LOOP(SETTLED(T, CLIP) state[i] = clip_##T(a_ + d_, c0, c1);) break;             \
        }                                                                                                  \
    }
SETTLES(float32, float)
SETTLES(float64, double)

#define RELU_SLOPE (T_)(a_ > 0)
#define LEAKY_SLOPE (a_ > 0 ? 1 : c0)
#define CLIP_SLOPE (T_)((a_ > c0) & (a_ < c1))

#define PREDICTED(F, f, T)                                                                                 \
    T_ a_ = a[i]; T_ e = move[i] - (f##_##T(a_, c0, c1) - free[i]);                                        \
    error[i] = e; signal[i] = F##_SLOPE * e;
#define CLAMPED(F) T_ a_ = a[i]; signal[i] = F##_SLOPE * move[i];

#define PREDICTS(NAME, T, FMA)                                                                             \
    void error_##NAME(int kind, double first, double second, const T *a, const T *free, const T *move,     \
                      T *error, T *signal, int is_predicted, int64_t n, int threads) {                     \
        typedef T T_;                                                                                      \
        const T c0 = (T)first, c1 = (T)second;                                                             \
        switch (2 * kind + is_predicted) {                                                                 \
        case 2 * RELU: LOOP(CLAMPED(RELU)) break;                                                          \
        case 2 * RELU + 1: LOOP(PREDICTED(RELU, relu, T)) break;                                           \
        case 2 * LEAKY: LOOP(CLAMPED(LEAKY)) break;                                                        \
        case 2 * LEAKY + 1: LOOP(PREDICTED(LEAKY, leaky, T)) break;                                        \
        case 2 * CLIP: LOOP(CLAMPED(CLIP)) break;                                                          \
        case 2 * CLIP + 1: LOOP(PREDICTED(CLIP, clip, T)) break;                                           \
        }                                                                                                  \
    }                                                                                                      \
    void move_##NAME(int kind, double first, double second, const T *pull, const T *error, const T *speed, \
                     const T *move, const T *free, T *new_speed, T *new_move, T *state,                    \
                     double step, double keep, int64_t n, int threads) {                                   \
        const T gamma = (T)step, m = (T)keep;                                                              \
        LOOP(T v = FMA(m, speed[i], gamma * (pull[i] - error[i])); T d = move[i] + v;                      \
             new_speed[i] = v; new_move[i] = d; state[i] = free[i] + d;)                                   \
    }
/* As PyTorch's add with alpha rounds. */
#ifdef __FMA__
PREDICTS(float32, float, __builtin_fmaf)
PREDICTS(float64, double, __builtin_fma)
#else
#define TWICE(x, y, z) ((x) * (y) + (z))
PREDICTS(float32, float, TWICE)
PREDICTS(float64, double, TWICE)
#endif
KERNELS(float32, float, float, SAME, SAME)
KERNELS(float64, double, double, SAME, SAME)
KERNELS(bfloat16, uint16_t, float, widen_bf16, narrow_bf16)

#include "gelu.h"

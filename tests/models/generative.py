"""Models whose output is an image, a map or a judgement of one: autoencoders, a U-Net, a GAN."""

import torch
from architecture import Architecture, classes, normal
from torch import nn
from torch.nn import functional as F


class DoubleConv(nn.Sequential):
    def __init__(self, inputs, outputs):
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(2, outputs), nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(inplace=True),
        )  # fmt: skip


class UNet(nn.Module):
    """Down and up again, the maps of the way down concatenated; a class for each pixel."""

    def __init__(self):
        super().__init__()
        self.inc, self.down, self.bottom = DoubleConv(3, 4), DoubleConv(4, 6), DoubleConv(6, 8)
        self.up1, self.conv1 = nn.ConvTranspose2d(8, 6, 2, stride=2), DoubleConv(12, 6)
        self.up2, self.conv2 = nn.Upsample(scale_factor=2, mode="nearest"), DoubleConv(10, 4)
        self.outc = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down(F.avg_pool2d(x1, 2))
        x3 = self.bottom(F.avg_pool2d(x2, 2))
        x = self.conv1(torch.cat([x2, self.up1(x3)], dim=1))
        return self.outc(self.conv2(torch.cat([x1, self.up2(x)], dim=1)))


class Autoencoder(nn.Module):
    """Sigmoid outputs in [0, 1]; the input is the target."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.LeakyReLU(0.1),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(6, 4, 2, stride=2), nn.LeakyReLU(0.1), nn.ConvTranspose2d(4, 1, 2, stride=2), nn.Sigmoid()
        )

    def forward(self, x):
        return self.decoder(self.encoder(x))


class VAE(nn.Module):
    """Returns reconstruction, mean and log variance; the latent is sampled inside forward."""

    def __init__(self, pixels=16, hidden=12, latent=3):
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(pixels, hidden), nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.fc3, self.fc4 = nn.Linear(latent, hidden), nn.Linear(hidden, pixels)

    def encode(self, x):
        h = F.silu(self.fc1(x))
        return self.fc21(h), self.fc22(h)

    def reparameterize(self, mu, logvar):
        std = torch.exp(0.5 * logvar)
        return mu + torch.randn_like(std) * std

    def forward(self, x):
        mu, logvar = self.encode(x.view(-1, 16))
        h = torch.tanh(self.fc3(self.reparameterize(mu, logvar)))
        return torch.sigmoid(self.fc4(h)), mu, logvar


def evidence_bound(output, y):
    """Reconstruction by binary cross entropy, and the KL divergence, of [recon, mu, logvar]."""
    recon, mu, logvar = output.split([16, 3, 3], dim=1)
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1)
    return (F.binary_cross_entropy(recon, y, reduction="none").sum(1) + kl).mean()


class GAN(nn.Module):
    """A generator's step: its samples through a discriminator whose weights are not trained."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(4, 8 * 2 * 2), nn.Unflatten(1, (8, 2, 2)), nn.BatchNorm2d(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 4, 2, stride=2), nn.BatchNorm2d(4), nn.ReLU(),
            nn.ConvTranspose2d(4, 1, 2, stride=2), nn.Tanh(),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True), nn.Flatten(), nn.Linear(24, 1),
        )  # fmt: skip
        self.discriminator.requires_grad_(False)

    def forward(self, z):
        return self.discriminator(self.generator(z))


class Discriminator(nn.Module):
    """A discriminator's step: real images, and detached samples, judged in one batch."""

    def __init__(self):
        super().__init__()
        self.gan = GAN()
        self.gan.requires_grad_(False).discriminator.requires_grad_(True)

    def forward(self, real, z):
        with torch.no_grad():
            fake = self.gan.generator(z)
        judged = self.gan.discriminator(torch.cat([real, fake.detach()]))
        return torch.cat(judged.chunk(2), dim=1)


class Denoiser(nn.Module):
    """A diffusion model's: the step's embedding shifts the maps, SiLU everywhere (DDPM)."""

    def __init__(self):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 6))
        self.conv_in, self.norm, self.conv = nn.Conv2d(1, 6, 3, padding=1), nn.GroupNorm(3, 6), nn.Conv2d(6, 6, 3, padding=1)
        self.conv_out = nn.Conv2d(6, 1, 3, padding=1)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1]))

    def forward(self, x, t):
        angles = t.to(x.dtype)[:, None] * self.frequencies
        embedding = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        h = self.conv_in(x)
        h = h + self.conv(F.silu(self.norm(h) + embedding[:, :, None, None]))
        return self.conv_out(F.silu(h))


def unit_images(n, dtype):
    return torch.rand(n, 1, 8, 8, dtype=dtype)


GENERATIVE = (
    Architecture(name="unet", build=UNet, inputs=normal(3, 8, 8), targets=classes(3, 8, 8), seed=2),
    Architecture(
        name="autoencoder", build=Autoencoder, loss=F.mse_loss, targets=unit_images,
        inputs=lambda n, dtype: (unit_images(n, dtype),), notes="output and target are images",
    ),
    Architecture(
        name="vae", build=VAE, inputs=lambda n, dtype: (torch.rand(n, 1, 4, 4, dtype=dtype),),
        targets=lambda n, dtype: torch.rand(n, 16, dtype=dtype), loss=evidence_bound, output=lambda out: torch.cat(out, dim=1),
        is_random=True,
    ),
    Architecture(
        name="gan_generator", build=GAN, inputs=normal(4), targets=lambda n, dtype: torch.ones(n, 1, dtype=dtype),
        loss=F.binary_cross_entropy_with_logits, ties_examples=True, notes="the discriminator is frozen",
    ),
    Architecture(
        name="gan_discriminator", build=Discriminator,
        inputs=lambda n, dtype: (torch.randn(n, 1, 8, 8, dtype=dtype), torch.randn(n, 4, dtype=dtype)),
        targets=lambda n, dtype: torch.tensor([[1.0, 0.0]], dtype=dtype).expand(n, 2),
        loss=F.binary_cross_entropy_with_logits, ties_examples=True,
        notes="activations see 2N rows; the generator runs without a graph",
    ),
    Architecture(
        name="diffusion_denoiser", build=Denoiser, loss=F.mse_loss,
        targets=lambda n, dtype: torch.randn(n, 1, 6, 6, dtype=dtype),
        inputs=lambda n, dtype: (torch.randn(n, 1, 6, 6, dtype=dtype), torch.randint(50, (n,))),
    ),
)  # fmt: skip

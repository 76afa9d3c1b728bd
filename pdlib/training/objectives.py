"""What the networks are trained to do: a function of the network and a batch, to named parts of a loss.

Where processes share a batch, their parts' mean is the whole batch's part, and so are the gradients', but for soft Dice
pooled over a batch (a segmenter's with `batch`, `reconstruction_objective`, the `dice_nats` of
`probabilistic_objective`), which each process pools over its share.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pdlib.diffusion import formulas
from pdlib.diffusion.sampler import Diffusion
from pdlib.diffusion.steps import Denoiser
from pdlib.networks.segmenters import segmentation_loss
from pdlib.training.bank import Batch
from pdlib.training.corruption import Mixture, mixed_presegs

Losses = dict[str, Tensor]  # parts by name: their sum is minimised, each has its curve
Objective = Callable[[nn.Module, Batch], Losses]


def segmentation_objective(loss: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """A segmenter's training loss on a batch: loss(logit, mask)."""
    return lambda network, batch: {"train_loss": loss(network(batch.image), batch.mask)}


def reconstruction_objective(positive_weight: float) -> Objective:
    """An auto-encoder's loss on masks: cross-entropy in which a lesion's pixel counts positive_weight times, and soft
    Dice over the whole batch. The mean squared error would lose small lesions.
    """

    def objective(network: nn.Module, batch: Batch) -> Losses:
        mask, logit = batch.mask, network(batch.mask).float()
        weight = torch.full((), positive_weight, device=mask.device)
        cross_entropy = nn.functional.binary_cross_entropy_with_logits(logit, mask, pos_weight=weight)
        return {"cross_entropy_loss": cross_entropy, "dice_loss": _pooled_dice_loss(logit, mask)}

    return objective


def diffusion_objective(diffusion: Diffusion, t_max: int) -> Objective:
    """The simple DDPM loss (Ho et al. 2020, Eq. 14) on the mask channel, t uniform over the indices below t_max.

    Of a logit the loss is the cross-entropy, as in `start_matched_objective`.
    """
    of_logit = diffusion.prediction == formulas.LOGIT

    def objective(network: nn.Module, batch: Batch) -> Losses:
        x_start, x_t, t, noise = _diffused(diffusion, t_max, batch)
        seen = torch.cat([diffusion.codec.image(batch.image), x_t], dim=1)
        output = network(seen, t.to(x_t.device, non_blocking=True)).float()
        if of_logit:
            return {"train_loss": _cross_entropy(output, batch.mask)}
        target = formulas.training_target(diffusion.prediction, x_start, t, noise, diffusion.schedule)
        return {"train_loss": nn.functional.mse_loss(output, target)}

    return objective


def hybrid_objective(diffusion: Diffusion, t_max: int, vlb_weight: float) -> Objective:
    """The simple loss and vlb_weight times the variational bound in bits (Nichol & Dhariwal 2021, Eq. 16), as
    guided-diffusion counts it, for a network whose second half of channels gives the variance. The bound's gradient
    does not pass through the prediction's channels.
    """

    def objective(network: nn.Module, batch: Batch) -> Losses:
        x_start, x_t, t, noise = _diffused(diffusion, t_max, batch)
        target = formulas.training_target(diffusion.prediction, x_start, t, noise, diffusion.schedule)
        seen = torch.cat([batch.image, x_t], dim=1)
        output, model_var_values = network(seen, t.to(x_t.device, non_blocking=True)).float().chunk(2, dim=1)
        detached, everything = output.detach(), (-math.inf, math.inf)
        pred_x_start = formulas.predict_x_start(diffusion.prediction, detached, x_t, t, diffusion.schedule, everything)
        terms = formulas.variational_bound(x_start, pred_x_start, model_var_values, x_t, t, diffusion)
        bound = t_max * terms.mean()  # the mean over t stands for the bound's sum
        return {"train_loss": nn.functional.mse_loss(output, target), "vlb_loss": vlb_weight * bound}

    return objective


def _diffused(diffusion: Diffusion, t_max: int, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_start, x_t [B, C, h, w] at random indices t [B] below t_max, and the noise in it."""
    t = batch.integers(t_max)
    x_start = diffusion.codec.encode(batch.mask)
    noise = batch.normal(*x_start.shape[1:])
    return x_start, formulas.q_sample(x_start, t, noise, diffusion.schedule), t, noise


def one_step_objective(
    diffusion: Diffusion, t_stop: int, mask_only: bool, loss: Callable[[Tensor, Tensor], Tensor]
) -> Objective:
    """ADDPM's last network: the mask from the state at index t_stop - 1, where the chain ends; loss(logit, mask)."""

    def objective(network: nn.Module, batch: Batch) -> Losses:
        noise = batch.normal(*batch.mask.shape[1:])
        x_t = formulas.q_sample(diffusion.codec.encode(batch.mask), t_stop - 1, noise, diffusion.schedule)
        seen = x_t if mask_only else torch.cat([batch.image, x_t], dim=1)
        return {"train_loss": loss(network(seen), batch.mask)}

    return objective


def distillation_objective(
    diffusion: Diffusion, teacher: Denoiser, grid: tuple[int, ...], preseg_share: float
) -> Objective:
    """A student learns to do in one noiseless step what its teacher does in two (Salimans & Ho 2022, Algorithm 2).

    teacher: called at the 2N indices of grid, which fall; the student at every second one, the first among them. Masks
    have 2C channels, references and then pre-segmentations; preseg_share of the states are diffused pre-segmentations.
    Neither prediction is clamped. The loss is the mean squared error in what the network predicts: for x_start weight 1
    in their Eq. 9, for v their "SNR + 1". ValueError for eps, of which a single call makes no sound x_start.
    """
    if diffusion.prediction == "eps":
        raise ValueError("a network that predicts eps cannot be distilled: train it to predict v or x_start")
    schedule, stops = diffusion.schedule, torch.tensor([*grid, -1])

    def teacher_step(image: Tensor, x_t: Tensor, t: Tensor, t_prev: Tensor) -> Tensor:
        output = teacher(torch.cat([image, x_t], dim=1), t.to(x_t.device, non_blocking=True)).float()
        x_start = formulas.predict_x_start(diffusion.prediction, output, x_t, t, schedule, (-math.inf, math.inf))
        return formulas.noiseless_step(x_start, x_t, t, t_prev, schedule)

    def objective(network: nn.Module, batch: Batch) -> Losses:
        reference, preseg = batch.mask.chunk(2, dim=1)
        i = 2 * batch.integers(len(grid) // 2)
        t, between, s = stops[i], stops[i + 1], stops[i + 2]
        guessed = (batch.uniform() < preseg_share).to(reference.device)
        x_start = diffusion.codec.encode(torch.where(guessed.reshape(-1, 1, 1, 1), preseg, reference))
        x_t = formulas.q_sample(x_start, t, batch.normal(*x_start.shape[1:]), schedule)
        with torch.no_grad():
            x_s = teacher_step(batch.image, teacher_step(batch.image, x_t, t, between), between, s)
        x_star = formulas.distillation_target(x_t, x_s, t, s, schedule)
        noise = formulas.implied_noise(x_star, x_t, t, schedule)
        target = formulas.training_target(diffusion.prediction, x_star, t, noise, schedule)
        output = network(torch.cat([batch.image, x_t], dim=1), t.to(x_t.device, non_blocking=True))
        return {"train_loss": nn.functional.mse_loss(output.float(), target)}

    return objective


def noise_level_objective(diffusion: Diffusion, t_max: int) -> Objective:
    """A network learns to estimate alphas_cumprod of diffused references, t uniform over the indices below t_max.

    The mean square of log(1 - abar) - log(1 - abar_hat), the norm that San-Roman et al. 2021 (arXiv 2104.02600)
    minimise.
    """
    smallest = torch.finfo(torch.float32).eps  # of 1 - abar_hat, where abar_hat rounds to 1

    def objective(network: nn.Module, batch: Batch) -> Losses:
        _, x_t, t, _ = _diffused(diffusion, t_max, batch)
        log_noise = (1 - network(torch.cat([batch.image, x_t], dim=1))).clamp_min(smallest).log()
        wanted = (1 - diffusion.schedule.abar(t)).log().to(log_noise)
        return {"train_loss": nn.functional.mse_loss(log_noise, wanted)}

    return objective


def start_matched_objective(diffusion: Diffusion, t_start: int, mixture: Mixture) -> Objective:
    """Cross-entropy of the reference's logit predicted from [image, preseg, x_t], t uniform over 0..t_start.

    x_t is `formulas.start_matched_mean` and noise. Masks have 2C channels, references and then pre-segmentations, of
    which the mixture takes the place of some. Cross-entropy has the same best prediction as the squared error, the mean
    of the masks that are possible, and learns it faster. ValueError for a network that predicts anything else.
    """
    if diffusion.prediction != formulas.LOGIT:
        raise ValueError(f"a start-matched network predicts the mask's logit, not {diffusion.prediction}")

    def objective(network: nn.Module, batch: Batch) -> Losses:
        reference, _ = batch.mask.chunk(2, dim=1)
        x_start, preseg = _with_presegs(diffusion, mixture, batch)
        t = batch.integers(t_start + 1)
        mean = formulas.start_matched_mean(x_start, preseg, t, t_start, diffusion.schedule)
        x_t = formulas.q_sample(mean, t, batch.normal(*x_start.shape[1:]), diffusion.schedule)
        output = network(torch.cat([batch.image, preseg, x_t], dim=1), t.to(x_t.device, non_blocking=True))
        return {"train_loss": _cross_entropy(output.float(), reference)}

    return objective


def refiner_objective(diffusion: Diffusion, mixture: Mixture, loss: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """A refiner's loss(logit, mask) on [image, preseg]; masks and mixture as in `start_matched_objective`."""

    def objective(network: nn.Module, batch: Batch) -> Losses:
        _, preseg = _with_presegs(diffusion, mixture, batch)
        reference, _ = batch.mask.chunk(2, dim=1)
        return {"train_loss": loss(network(torch.cat([batch.image, preseg], dim=1)), reference)}

    return objective


def _with_presegs(diffusion: Diffusion, mixture: Mixture, batch: Batch) -> tuple[Tensor, Tensor]:
    """References and the pre-segmentations to train with, both encoded, [B, C, h, w]."""
    reference, preseg = batch.whole.mask.chunk(2, dim=1)
    mixed = mixed_presegs(reference, preseg, mixture, batch.generator)
    return diffusion.codec.encode(batch.own(reference)), diffusion.codec.encode(batch.own(mixed))


def probabilistic_objective(beta: float, warmup_steps: int, dice_nats: float) -> Objective:
    """The Probabilistic U-Net's bound (Kohl et al. 2018, Eq. 4): cross-entropy of a posterior draw, summed over pixels,
    and the weighted KL, means over the batch. The weight rises to beta in the first warmup_steps >= 1 updates.

    dice_nats: the reconstruction's weight of a whole Dice loss, pooled over the batch, in nats a pixel; 0 is the
    authors' bound. Cross-entropy alone learns small lesions slowly, here as in a segmenter.
    """

    def objective(network: nn.Module, batch: Batch) -> Losses:
        mask = batch.mask
        logit, kl = network(batch.image, mask=mask, fresh=batch.normal(network.latent))
        logit, weight = logit.float(), beta * min(1.0, (batch.step + 1) / warmup_steps)
        cross_entropy = nn.functional.binary_cross_entropy_with_logits(logit, mask, reduction="sum") / len(mask)
        losses = {"reconstruction_loss": cross_entropy, "kl_loss": weight * kl.mean()}
        if dice_nats:
            losses["dice_loss"] = dice_nats * mask[0].numel() * _pooled_dice_loss(logit, mask)
        return losses

    return objective


def _pooled_dice_loss(logit: Tensor, mask: Tensor) -> Tensor:
    """One minus the soft Dice of a whole batch, so that slices without a lesion do not cost a whole one."""
    overlap, either = (logit.sigmoid() * mask).sum(), logit.sigmoid().sum() + mask.sum()
    return 1 - (2 * overlap + 1) / (either + 1)


def adversarial_objective(diffusion: Diffusion, t_prime: int, mismatched_steps: int) -> Objective:
    """TDPM's game for x at index t_prime - 1 (Zheng et al. 2022) with the logistic loss that does not saturate
    (Goodfellow et al. 2014), one update for both. The network is a `ConditionalGan`.

    The discriminator alone teaches the generator: no term pulls its draw to the reference. Both are shown with the same
    noise, so that they differ in the mask alone. At first half of what the discriminator learns to refuse are
    references of other images (Reed et al. 2016, arXiv 1605.05396): so it learns early that an image and its lesions
    belong together. They would bias the generator, so their share falls to none in mismatched_steps >= 1 updates.
    Adam's beta1 should be 0.5.
    """
    softplus = nn.functional.softplus

    def objective(network: nn.Module, batch: Batch) -> Losses:
        noise = batch.whole.normal(*batch.mask.shape[1:])
        fresh = batch.normal(len(network.noise_scales), *batch.mask.shape[2:])

        def diffuse(mask: Tensor, noise: Tensor) -> Tensor:
            return formulas.q_sample(diffusion.codec.encode(mask), t_prime - 1, noise, diffusion.schedule)

        states = diffuse(batch.whole.mask, noise)
        shown = {"real": batch.own(states), "mismatched": batch.own(states.roll(1, 0))}
        scores = network(batch.image, fresh=fresh, diffuse=lambda mask: diffuse(mask, batch.own(noise)), **shown)
        fooled, drawn, real, mismatched = (score.float() for score in scores)
        share = 0.5 * max(0.0, 1 - batch.step / mismatched_steps)
        refused = (1 - share) * softplus(drawn).mean() + share * softplus(mismatched).mean()
        return {"g_loss": softplus(-fooled).mean(), "d_loss": softplus(-real).mean() + refused}

    return objective


def marginal(diffusion: Diffusion, index: int) -> dict[str, float]:
    """q(x) at an index, as `build_generator` takes it: the mean where the mask is 0 and where it is 1, the noise."""
    abar = float(diffusion.schedule.abar(index))
    background, lesion = (math.sqrt(abar) * float(diffusion.codec.encode(torch.tensor(one))) for one in (0.0, 1.0))
    return {"background": background, "lesion": lesion, "deviation": math.sqrt(1 - abar)}


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "segmentation": lambda loss, **options: segmentation_objective(segmentation_loss(loss, **options)),
    "probabilistic": probabilistic_objective,
}


def build_objective(name: str, **options) -> Objective:
    """A segmenter's objective from a profile's words, a key of OBJECTIVES and its options; ValueError if unknown."""
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; known: {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[name](**options)


def _cross_entropy(logit: Tensor, mask: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logit, mask)

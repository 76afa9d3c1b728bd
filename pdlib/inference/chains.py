"""A row of Table 1 as a chain: the one place where registry and settings meet."""

from pdlib.diffusion.sampler import Chain
from pdlib.diffusion.schedule import calls_of_stride, scale_t_prime
from pdlib.methods import Method
from pdlib.sections.design import ChainSettings


def settings_of(method: Method, settings: ChainSettings, **changes) -> ChainSettings:
    """The chain settings of a row: the profile's, in their place the row's own, in the place of both the changes.

    ValueError for a change of no such setting, or out of its range.
    """
    return ChainSettings.model_validate({**settings.model_dump(), **method.settings, **changes})


def chain_of(method: Method, settings: ChainSettings, steps: int, **changes) -> Chain:
    """The chain of a row on a schedule of `steps` steps, to which the paper's T' and t_stop are scaled.

    settings: the profile's; changes: see `settings_of`. A row that starts from pure noise starts at the schedule's end,
    whatever T'. ValueError for a row without a chain.
    """
    if method.start is None:
        raise ValueError(f"{method.title}: a row without a chain")
    settings = settings_of(method, settings, **changes)
    t_prime = steps if method.start == "gaussian" else scale_t_prime(settings.t_prime, settings.paper_steps, steps)
    t_stop = scale_t_prime(settings.t_stop, settings.paper_steps, steps) if method.finish == "one_step" else 0
    calls = settings.calls or calls_of_stride(t_prime, settings.stride, t_stop)
    if method.finish == "x0_jump":
        calls = 1
    if method.start == "mask":  # without noise there is nothing to denoise
        t_stop, calls = t_prime, 0
    how = (settings.rule, settings.eta, settings.convention, t_stop, settings.spacing)
    return Chain(method.start, method.finish, t_prime, calls, *how)

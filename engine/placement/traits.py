"""What is known of a sampler before it runs."""

from __future__ import annotations

from dataclasses import dataclass

from ..tuning import DENSE_TAIL, DENSE_TAIL_MULTISTEP, RENEWED_OF_ONE_STEP, RENEWED_OF_THIRD_ORDER

# Samplers that renew the noise by the negative prediction (CFG++, Chung et al. 2024, arXiv 2406.08070).
CFG_PP = ("cfg_pp", "euler_pp")
# Parts of the names of samplers whose noise is renewed: only the denoised image is smooth along their path.
STOCHASTIC = ("ancestral", "sde", "lcm", "ddpm", "sa_solver", "seeds", "restart", "2s_a", *CFG_PP)
# Parts of the names of samplers that add as much noise as a stochastic differential equation has.
SDE = ("sde", "seeds")
# Parts of the names of samplers that extrapolate from earlier steps, and so carry a forecast's error into the next.
MULTISTEP = ("_2m", "_3m", "multistep", "lms", "ipndm", "deis", "uni_pc", "unipc", "gradient_estimation", "er_sde", "sa_solver")
# Samplers of one evaluation a step that go all the way to the guided image, so that a forecast's error enters the state whole,
# however short the step. Their relative of two evaluations, dpmpp_2s_ancestral_cfg_pp, was measured to mend most of it in the
# second.
WHOLE_STEP = ("euler_cfg_pp", "euler_ancestral_cfg_pp")
# SA-Solver weighs four predictions by 2.4, -2.4, 1.4 and -0.3 or so, which multiplies their errors by 6 to 7; dpmpp_3m_sde does
# so by 3 to 4, other multistep samplers by 2 to 2.5, and where SA-Solver evaluates twice a step it is under 2.
STEEP, EVALUATED_TWICE = ("sa_solver",), ("sa_solver_pece",)
# Multistep samplers that lean on three predictions.
THIRD_ORDER = ("_3m",)


def _is_of(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)


@dataclass(frozen=True)
class SamplerTraits:
    """What the name of a sampler tells, and its guidance.

    noisy: it adds fresh noise, or renews it (cfg_pp) by the negative prediction. sde: as much of it as a stochastic
    differential equation has. multistep: a step leans on predictions of earlier steps, of two of them where it is of
    third_order, with great weights of both signs where it is steep. whole_step: a step takes over the guided image whole.
    unguided: it gets the model's prediction for the prompt as it is (CFG 1), and not how far that is from another one, several
    times over.
    """

    noisy: bool = False
    sde: bool = False
    multistep: bool = False
    whole_step: bool = False
    cfg_pp: bool = False
    third_order: bool = False
    steep: bool = False
    unguided: bool = False

    @classmethod
    def of(cls, name: str, unguided: bool = False) -> SamplerTraits:
        """The traits of a sampler by its k-diffusion name, with or without the prefix "sample_"."""
        kinds = (STOCHASTIC, SDE, MULTISTEP, WHOLE_STEP, CFG_PP, THIRD_ORDER)
        steep = _is_of(name, STEEP) and not _is_of(name, EVALUATED_TWICE)
        return cls(*(_is_of(name, parts) for parts in kinds), steep, unguided)

    @property
    def multiplies(self) -> bool:
        """Whether in flows it multiplies what a forecast is off by until other things are drawn."""
        return self.cfg_pp or self.steep

    @property
    def may_be_renewed(self) -> float:
        """How much of the noise may be new before a gap ends, in that of multistep samplers: more where a short step brings no
        more of a forecast's error into the state than its own, less where differences of three steps multiply it."""
        if self.third_order:
            return RENEWED_OF_THIRD_ORDER
        return 1.0 if self.multistep or self.whole_step else RENEWED_OF_ONE_STEP

    @property
    def dense_tail(self) -> int:
        """How many steps at the end are to be dense: nothing corrects what they get wrong."""
        return DENSE_TAIL_MULTISTEP if self.multistep else DENSE_TAIL

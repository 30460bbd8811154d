"""What is known of a sampler before it runs."""

from __future__ import annotations

from dataclasses import dataclass

from ..tuning import DENSE_TAIL, DENSE_TAIL_MULTISTEP, RENEWED_OF_ONE_STEP, RENEWED_OF_THIRD_ORDER

# Parts of the names of samplers that add fresh noise: only the denoised image is smooth along their path.
STOCHASTIC = ("ancestral", "sde", "lcm", "ddpm", "sa_solver", "seeds", "restart", "2s_a")
# Parts of the names of samplers that add as much noise as a stochastic differential equation has.
SDE = ("sde", "seeds")
# Parts of the names of samplers that extrapolate from earlier steps, and so carry a forecast's error into the next.
MULTISTEP = ("_2m", "_3m", "multistep", "lms", "ipndm", "deis", "uni_pc", "gradient_estimation", "er_sde", "sa_solver")
# The sampler of one evaluation a step that goes all the way to the guided image and renews the noise by the negative
# prediction (CFG++, Chung et al. 2024, arXiv 2406.08070), so that a forecast's error enters the state whole, however short the
# step. Its relative of two evaluations, dpmpp_2s_ancestral_cfg_pp, was measured to mend most of it in the second.
WHOLE_STEP = ("euler_ancestral_cfg_pp",)
# Samplers that multiply in flows what a forecast is off by until other things are drawn, where they add noise: those that renew
# the noise by the negative prediction (CFG++), and SA-Solver, whose steps weigh four predictions by 2.4, -2.4, 1.4 and -0.3 or
# so, which multiplies errors by 6 to 7; under dpmpp_3m_sde that is 3 to 4, under other multistep samplers 2 to 2.5. Where it
# evaluates twice a step (sa_solver_pece) it is under 2.
MULTIPLYING = ("cfg_pp", "sa_solver")
CORRECTED = ("_pece",)
# Multistep samplers that lean on three predictions.
THIRD_ORDER = ("_3m",)


@dataclass(frozen=True)
class SamplerTraits:
    """What the name of a sampler tells, and its guidance.

    noisy: it adds fresh noise. sde: as much of it as a stochastic differential equation has. multistep: a step leans on
    predictions of earlier steps, of two of them where it is of third_order. whole_step: a step takes over the guided image
    whole. multiplying: in flows it multiplies errors. unguided: it gets the model's prediction for the prompt as it is (CFG 1),
    and not how far that is from another one, several times over.
    """

    noisy: bool = False
    sde: bool = False
    multistep: bool = False
    whole_step: bool = False
    multiplying: bool = False
    third_order: bool = False
    unguided: bool = False

    @classmethod
    def of(cls, name: str, unguided: bool = False) -> SamplerTraits:
        """The traits of a sampler by its k-diffusion name, with or without the prefix "sample_"."""
        noisy, sde, multistep, whole_step, multiplying, corrected, third_order = (
            any(part in name for part in parts)
            for parts in (STOCHASTIC, SDE, MULTISTEP, WHOLE_STEP, MULTIPLYING, CORRECTED, THIRD_ORDER)
        )
        return cls(noisy, sde, multistep, whole_step, multiplying and not corrected, third_order, unguided)

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

"""Every number that was found by measurement, with the command that measured it.

Numbers that follow from mathematics stand where they are used. `bench` below is `python run.py bench`, which compares plans at
equal cost on the demo UNet, or with `--model mmdit` on the demo transformer; `ablate` is `python run.py ablate`. Where it says
"by search", placements were compared on the plain demo models (demo/plain.py) with a program that was not kept, and the result
was checked with `bench`.
"""

from __future__ import annotations

# -- placement, for every model ----------------------------------------------------------------------------------------
NOISY_PACE = 0.7  # share of the pace that serves under fresh noise; bench --sampler euler_ancestral
REGIONAL_GAP = 3  # steps; shorter gaps are forecast well enough; bench --steps 30, methods with `correct: always`
REGIONAL_COST = 0.25  # of a dense evaluation, where a plan is replaced by one without any: 0.27 at 32x32 cells, 0.15 at 64x64
REGIONAL_PACE = 3.0  # slower paces are forecast well enough; the same command
SHALLOW_PACE = 6.0  # at slower paces forecasts beat shallow evaluations, also in short schedules; bench --steps 12
LONG_SCHEDULE = 20  # steps; in shorter ones even a corrected forecast leaves something to compute; bench --steps 12, 20
DENSE_TAIL_MULTISTEP, DENSE_TAIL = 3, 2  # dense steps at the end, which nothing corrects; by search

# -- placement along log sigma (eps- and v-prediction), by search under euler and dpmpp_2m --------------------------------
LOG_SIGMA_SHARE = 0.75  # of log sigma in the distance between evaluations; the rest is steps
LOG_SIGMA_FIRST_GAP = 3  # steps; a longer gap right after the warm-up now and then leads to another picture
LOG_SIGMA_SLACK = 1.05  # how much further than the pace a gap may reach
PACE_PER_GROWTH = 2.5  # a gap is longer than the one before by at most pace / this
WARMUP, WARMUP_FAST, FAST_PACE = 4, 3, 8.0  # dense steps at the start, and from which pace on there is one less

# -- placement in flows, by search under euler and dpmpp_2m at 12, 16, 20 and 30 steps ------------------------------------
FLOW_PACE = 5.0  # forecasts of flows do not reach further than this many steps; of a higher pace a third of the rest counts
FLOW_PACE_SHARE = 3
FLOW_LEAST_PACE = 2.0  # below it nothing would be saved; no pace that the user set higher falls below it
FLOW_WARMUP, FLOW_WARMUP_SHORT, SHORT_FLOW = 2, 3, 12  # dense steps at the start, more of them in fewer steps than the third

# -- placement beside a noise mask; python run.py inpainting ---------------------------------------------------------------
# So many gaps, and more / pace of them, but of no fewer steps on average than the least and 1 + pace / INPAINT_PACE. The n-th
# ends where (n / their number) ** growth of the steps after the warm-up are done.
INPAINT_GAPS, INPAINT_MORE_GAPS, INPAINT_LEAST_GAP, INPAINT_PACE, INPAINT_GROWTH = 3, 8.0, 2, 3.0, 1.4

# -- placement by the shortest path; python run.py paths -----------------------------------------------------------------
PATH_WARMUP = 2  # dense steps at the start: a forecast needs no more
LONGEST_GAP = 12  # steps; longer ones are not looked at
# Where the profile is another model's: below FEW_STEPS, as distilled models are sampled in, one step at most is forecast at a
# time; models of an unknown class have gaps of at most CAREFUL_GAP steps (python run.py care); and the expected error has to be
# better than what was asked for by as much as expectations were off by (docs/paths.md).
FEW_STEPS, GAP_IN_FEW_STEPS, CAREFUL_GAP, CAREFUL_DB = 12, 2, 4, 6.0
# In fewer than FEW_STEPS of a flow at CFG 1, as turbo models are sampled in, presets go by the path: (pace + the former) / the
# latter of all steps but the first are forecast, which makes the presets differ from 6 steps on. Of 4 steps it is one at most,
# and in less than LEAST_UNGUIDED none: with more, fewer steps are better (python run.py few).
UNGUIDED_PACE, UNGUIDED_SCALE, LEAST_UNGUIDED = 3, 17, 4
# From this pace on, dense evaluations between the gaps of few steps at CFG 1 merge tokens: below it that costs more fidelity
# than one evaluation less (python run.py few: at 8 steps quality fell from 52.0 to 47.7 dB for 8% of its cost).
MERGING_PACE = 8.0
# The largest variance of pictures in any direction, in mean squares of their latents: it is what the first gaps' errors depend
# on, which with 1 are expected 2 dB better, with 4 1 dB worse. Of 44 plans of the demo UNet under dpmpp_2m, and of the demo
# transformer, 4 and 1 fit best; on the model that nothing is tuned to 4 loses 9 dB at equal cost (python run.py plans).
WIDEST = 2.0

# -- placement of shallow evaluations; bench --steps 12, with and without `shallow: always` -------------------------------
SHALLOW_WARMUP = 1
SHALLOW_GROWTH_FROM, SHALLOW_GROWTH_SCALE, SHALLOW_LEAST_GROWTH = 5, 6, 0.5  # growth of gaps: (pace - 5) / 6, at least 0.5
SHALLOW_PACE_PER_GAP = 2.75  # a gap is at most pace / this many steps

# -- placement under fresh noise; python run.py stochastic ---------------------------------------------------------------
# How much of the noise in the state may be new since the last dense evaluation, at pace 0 and more of it with each unit of
# pace; beyond that objects appear. This is for shallow evaluations under samplers that keep errors; forecasts may reach over
# less, other samplers over more.
RENEWED, RENEWED_PER_PACE, RENEWED_OF_FORECASTS, RENEWED_OF_ONE_STEP, RENEWED_OF_THIRD_ORDER = 0.35, 0.01, 3 / 4, 4 / 3, 1 / 2
# The share of a flow's steps, and the sigma above which they lie, in which it is open what the picture will show. On the demo
# transformer in 30 steps (res_multistep_ancestral, ddpm, seeds_2; `fast`; seeds 4242, 5151) forecasts from the start on drew an
# object more in 3 of 18 pictures, after a quarter of the steps in 1 of 18, after a third in none.
UNDECIDED_STEPS, UNDECIDED_ABOVE = 1 / 3, 0.8
NOISY_SHALLOW_WARMUP = 2  # dense steps at the start where shallow evaluations fill the gaps

# -- adaptive gaps; bench, methods with `interval: adaptive` -------------------------------------------------------------
ADAPTIVE_GROWTH = 2  # steps by which a gap may be longer than the one before
DRIFT_PER_PACE = 0.004  # share of the prediction that a run may drift in one gap, for each unit of pace
ADAPTIVE_ROUNDING = 0.3  # added before a gap's length is cut to whole steps

# -- prediction; ablate, and by search for flows ------------------------------------------------------------------------
DAMPING = {"eps": 0.7, "x0": 0.5}  # share of the last slope that goes on: all of it overshoots, none of it lags behind
ACTIVATION_DAMPING = 0.7  # the same for recorded activations; ablate
FLOW_DAMPING_SPACING = 0.65  # spacing of two points, in half log-SNR, at which half of the slope's damping is left in flows
FLOW_DAMPING_POWER = 3  # how sharply it falls with that spacing
MAX_EXTRAPOLATION = 4.0  # spacings of the last two points beyond which a straight line is not trusted
# Spacings of the two points before a gap beyond which a parabola through them and its end is not trusted: in early steps of
# the demo UNet a longer one turned 48 dB into 29, shorter ones gain 3 to 5 dB.
MAX_PARABOLA = 2.5
TRUSTED_SHARE = 0.03  # share of the prediction that a sampler may be off its path and half of the correction is still made
CORRECTED_WITHIN = 8  # evaluations after which a multistep sampler still owes less than a thousandth
FLOW_CEILING = 1.02  # stands for sigma 1, where a flow starts and its signal-to-noise ratio is zero

# -- region; python run.py highlights ------------------------------------------------------------------------------------
# The coefficient of variation of the words' attention over the frame under which no word stands out. The greatest of a run is
# at least 1.6, 1.5 and 0.93 for prompts with objects, in the demo UNet, the demo transformer and the second model, and at most
# 0.68, 0.64 and 0.50 for others (seed 7003).
MIN_PROMINENCE = 0.75
GUIDE_RADIUS = 0.25  # of the frame's shorter side, over which the heat is fitted by the denoised latent
GUIDE_EPSILON = 0.05  # of the guide's variance, at which a fit is given up for the mean
AUTOMATIC_THRESHOLD = 0.6  # the knob's default, which stands for Otsu's threshold
PATCH_LEVEL = 0.2  # of the way from a patch's own threshold to its hottest cell
LOST_SHARE = 0.5  # of what belongs to a peak of the unfiltered heat that is highlighted, under which the filter has lost it
WORD_SHARE = 0.7  # of a word's hottest cell that a patch reaches which is highlighted for the word
NEIGHBOURHOOD = 0.1  # of the frame's shorter side around a patch, against which its own threshold divides it
MAX_WINDOWS = 4  # of one image
MAX_TILES = 128  # of one image's tokens; each is pasted by itself
MAX_BOXES = 16  # that are joined to windows; joining takes as many comparisons as their third power
MOVED_SHARE = 0.2  # share of the highlight outside its windows from which on they move
SHRUNK_SHARE = 0.7  # new windows are taken up when their area is at most this share of the old
CAPTURES = 3  # evaluations whose attention is captured where the highlight is only looked at
NEWEST_HEATMAP = 0.2  # least share of the newest heatmap in the running mean

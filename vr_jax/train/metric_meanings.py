"""What the metrics of training mean, in a sentence each; docs/metrics.md has the same sentences.

In names, <name> stands for a reward or `total`, <segment> for a segment of a reply or a turn,
<part> for a part of a step, and … for one of several ends.
"""

from collections.abc import Mapping
import functools
import re

MEANINGS: Mapping[str, str] = {
  "loss": (
    "RL: the whole loss, with KL and entropy terms. SFT: negative log-likelihood of the "
    "reference replies."
  ),
  "validation_loss": (
    "SFT: negative log-likelihood of the reference replies of the validation split."
  ),
  "loss_tokens": "Number of tokens in the loss.",
  "num_tokens": (
    "Tokens seen so far in this stage, of prompts and replies, padding excluded. A prompt counts "
    "once for its group."
  ),
  "grad_norm": "Norm of the gradient before clipping.",
  "learning_rate": "Learning rate of the last update.",
  "entropy": "Mean entropy of the policy over sampled tokens.",
  "kl": "Mean estimated KL divergence from the reference policy.",
  "policy_ratio": (
    "Mean ratio of the policy's probability of a token (or of a reply, GSPO) to that at the "
    "start of the update."
  ),
  "clip_ratio/low_mean": (
    "Fraction of tokens with a negative advantage and a ratio below 1 - clip_epsilon_low. "
    "CISPO: of either sign."
  ),
  "clip_ratio/high_mean": (
    "Fraction of tokens with a positive advantage and a ratio above 1 + clip_epsilon_high. "
    "CISPO: of either sign."
  ),
  "clip_ratio/dual_mean": (
    "Fraction of tokens with a negative advantage and a ratio above rl.dual_clip, where that "
    "is set."
  ),
  "sampling/importance_sampling_ratio/mean": (
    "Mean ratio of the trainer's probability of a token to the sampler's. Without top-p, top-k "
    'and min-p its expectation is 1 however much they differ; with rl.sampler_log_probs="kept" it '
    "is about the mass that these keep."
  ),
  "sampling/sampling_logp_difference/mean": (
    "Mean absolute difference of a token's log-prob between trainer and sampler."
  ),
  "sampling/sampling_logp_difference/p99": (
    "What that difference exceeds for at most 1 % of the tokens, rounded up by at most 9.1 %."
  ),
  "sampling/k3": (
    "Mean of ratio - 1 - log(ratio) over tokens, the ratio being trainer's probability over "
    "sampler's: an estimate of the KL divergence of the trainer from the sampler."
  ),
  "sampling/reply_logp_difference/mean": (
    "Mean absolute difference of a whole reply's log-prob between trainer and sampler."
  ),
  "sampling/reply_logp_difference/p99": (
    "What that difference exceeds for at most 1 % of the replies, rounded up by at most 9.1 %."
  ),
  "sampling/reply_k3": (
    "Mean of ratio - 1 - log(ratio) over replies, with the ratios of whole replies; a log(ratio) "
    "above 20 counts as 20."
  ),
  "sampling/tis_capped_fraction": (
    "Fraction of tokens whose importance weight is cut at rl.tis_cap."
  ),
  "nonfinite_updates": (
    "Updates so far that changed nothing because the loss or the gradient was not finite."
  ),
  "consecutive_nonfinite_updates": (
    "How many of the last updates in a row changed nothing for that reason."
  ),
  "rewards/<name>/mean": "Mean of a reward over the replies that have a score.",
  "rewards/<name>/std": "Standard deviation of a reward over the replies that have a score.",
  "rewards/<name>/zero_ratio": "Fraction of the replies that have a score whose reward is 0.",
  "rewards/<segment>/<name>/…": (
    "Mean, standard deviation or fraction of zeros of a reward of one segment."
  ),
  "frac_reward_zero_std": "Fraction of groups whose replies all have the same reward.",
  "frac_reward_zero_std/<segment>": (
    "Fraction of groups whose replies all have the same reward for one segment, with "
    'rl.advantage_estimator="segments".'
  ),
  "unscored_ratio/<segment>": (
    "Fraction of replies without a verdict for this segment (one turn only)."
  ),
  "sampling/carried_fraction": (
    "Fraction of the replies that had been begun when the step began, with rl.carry_over."
  ),
  "dynamic_sampling/batches": "Batches sampled for one step, with dynamic sampling.",
  "dynamic_sampling/signal_fraction": (
    "Fraction of the groups sampled for a step whose replies differ in reward."
  ),
  "completions/mean_length": "Mean number of sampled tokens of an episode.",
  "completions/min_length": "Fewest sampled tokens of an episode.",
  "completions/max_length": "Most sampled tokens of an episode.",
  "completions/<segment>/mean_length": "Mean number of tokens of a segment.",
  "completions/clipped_ratio": (
    "Fraction of replies that reached rl.max_new_tokens, or that rl.repetition_window ended."
  ),
  "completions/repetition_ratio": (
    "Fraction of replies that rl.repetition_window ended, where that is set."
  ),
  "padding_fraction": (
    "Fraction of the tokens computed in a step that are padding or lie behind the end of a reply."
  ),
  "eval/accuracy": "Mean task score of the answers, at eval.temperature.",
  "eval/<metric>": ("Mean of another metric of the environment's episodes, as eval/frame_recall."),
  "eval/rewards/<name>/mean": "Mean of a reward over the replies that have a score.",
  "eval/rewards/<segment>/<name>/mean": (
    "Mean of a reward of one segment over the replies that have a score."
  ),
  "eval/completions/mean_length": "Mean number of sampled tokens of a held-out episode.",
  "critic/loss": "Clipped squared error of the values.",
  "critic/grad_norm": "Norm of the critic's gradient before clipping.",
  "critic/value": "Mean value.",
  "critic/return": "Mean return.",
  "critic/value_clip_ratio": "Fraction of tokens whose loss is the clipped error.",
  "critic/explained_variance": "1 - var(return - value) / var(return), before the update.",
  "critic/advantages/mean": "Mean of the advantages before whitening.",
  "critic/advantages/std": "Standard deviation of the advantages before whitening.",
  "critic/kl": (
    "Mean k1 estimate of the KL divergence that is subtracted from rewards, where "
    "config.critic.kl_weight is set."
  ),
  "critic/nonfinite_updates": (
    "The critic's updates so far that changed nothing because the loss or the gradient was "
    "not finite."
  ),
  "critic/consecutive_nonfinite_updates": (
    "How many of the critic's last updates in a row changed nothing for that reason."
  ),
  "turns": "Mean number of turns of an episode.",
  "episode_accuracy": "Mean task score of an episode's answer.",
  "retrieval_rate": "Fraction of turns whose reply asks for frames.",
  "invalid_action_rate": "Fraction of turns whose reply is no valid action.",
  "frame_recall": "Fraction of the relevant frames that an episode was shown.",
  "episode_format": "Mean fraction of the format checks that an episode's replies pass.",
  "key_frame_visible": "Fraction of episodes whose key frame shows the object.",
  "key_frame_value": (
    "Mean size of the object in the key frame: 0 at its smallest in the clip, 1 at its largest."
  ),
  "box_iou": "Mean IoU of the box with the true one of the key frame; 0 without a box.",
  "relevance/unscored_retrievals": "Retrievals on examples whose relevant frames are unknown.",
  "exploration/bonus_fraction": "Fraction of turns that got the exploration bonus.",
  "exploration/ended": "1 after the bonus has ended for good.",
  "judge/asked": "Questions put to the judge in this step.",
  "judge/cached": "Cases that the cache on disk answered.",
  "judge/failed": "Cases without a verdict.",
  "judge/leaked": "Observations rejected by the leak filter.",
  "judge/requests": "Requests sent to the endpoint.",
  "judge/retries": "Requests to the endpoint that repeated an earlier one.",
  "judge/over_budget": "Questions not sent to the endpoint because the budget was spent.",
  "judge/unanswered": "Questions to the endpoint whose last retry failed too.",
  "judge/too_long": "Questions that exceed the context of the local judge.",
  "perf/time/<part>": (
    "Time of a part of a step: data, rollout, reward, update, log, validation, evaluation."
  ),
  "perf/time/step": "Time of the whole step.",
  "perf/compilation_time": (
    "Time in which programs were compiled, of the parts of a step that sample, score and update."
  ),
  "perf/tokens_per_second": "Reply tokens of a step divided by its time.",
  "perf/exposed_host_fraction": "Fraction of a step in which the devices waited for the host.",
  "perf/slowest_process": (
    "With several processes: the index of the one whose own work took longest, which is reading, "
    "scoring and writing while its devices wait."
  ),
  "perf/slowest_process_ratio": (
    "How many times as long the step took as it would if that process were as fast as the median "
    "of the others."
  ),
  "perf/time/slowest_process": "Time of that process's own work.",
  "perf/host_peak_mib": "Largest resident memory of the process so far.",
  "perf/device_peak_mib": "Largest memory used so far on the process's first device.",
  "perf/device_memory_mib": (
    "Memory in use on the process's first device, where the backend counts it."
  ),
  "vision/cache_hits": "Clips of the batch whose features were in the cache.",
  "vision/cache_rebuilt": "Damaged cache entries that were computed again.",
}


@functools.cache
def meaning(name: str) -> str:
  """What a metric means; "" for one that is not ours, as of a user's own environment."""
  if name in MEANINGS:
    return MEANINGS[name]
  matches = (text for pattern, text in _patterns() if pattern.fullmatch(name))
  return next(matches, "")


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
  """The names with placeholders as regular expressions, those with fewer placeholders first."""
  found = [
    (name.count("<"), re.sub(r"<\w+>|…", "[^/]+", re.escape(name).replace("\\<", "<")), text)
    for name, text in MEANINGS.items()
    if "<" in name
  ]
  return tuple((re.compile(pattern), text) for _, pattern, text in sorted(found))

"""Order of the tasks, position by position, such that every prefix keeps their shares.

Pure: a function of shares and lengths, never of the number of ranks, so a resumed
run continues exactly where it stopped. Knows nothing of examples and tensors.

Shapes: K tasks, T positions.
"""

import heapq
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

ROUNDING = 1e-9
FORECAST_DRAWS = 4096
TRIES = 12


def task_sequence(shares: np.ndarray, *, length: int, lengths: Sequence[Iterable[int]] | None = None) -> np.ndarray:
    """Task of each position, such that every prefix holds every task's share.

    Examples (no `lengths`): for K tasks every count is within 1 - 1/(2K-2) of what was asked, at every prefix.

    Tokens: the tokens of every task are within one longest example, over all tasks, of what was asked, at every
    prefix. Proven for shares that stay, and for two tasks. Where three or more tasks have shares that change, a task
    is still never more than one longest example ahead, but may be up to K-1 behind: the order is the best that
    `TRIES` tries find (see `_changing_tokens`).

    Args:
        shares: one share for each task (K), or a row of them for each position (T, K). They, or each row, sum to 1.
            A task whose share has been zero so far is not drawn.
        length: positions, T.
        lengths: tokens of each task's draws, in the order in which its examples are drawn, more than T of them. Read
            more than once.

    Returns:
        int16 array of `length` task numbers.
    """
    shares = np.asarray(shares, dtype=np.float64)
    assert shares.ndim == 1 or len(shares) == length, (shares.shape, length)
    assert np.all(shares >= 0), shares
    assert np.allclose(shares.sum(axis=-1), 1.0, rtol=0.0, atol=ROUNDING), shares
    if shares.shape[-1] == 1:
        return np.zeros(length, dtype=np.int16)
    if lengths is None:
        return _steady_examples(shares, length=length) if shares.ndim == 1 else _changing_examples(shares)
    if shares.ndim == 1:
        return _steady_tokens(shares, length=length, lengths=lengths)
    return _changing_tokens(shares, lengths=lengths)


def _steady_examples(shares_K: np.ndarray, *, length: int) -> np.ndarray:
    """The chairman assignment of Tijdeman (1980, Discrete Mathematics 32, 323-330).

    Among the tasks whose lag has reached 1/(2K-2), take the one that must be served soonest. Then
    |count_i(t) - share_i * t| <= 1 - 1/(2K-2) at every prefix t.
    """
    margin = 1.0 / (2 * len(shares_K) - 2)
    # Rounding of sums must not shut out a task whose lag is exactly at the bound.
    due_lag, largest_lag = margin - ROUNDING, 1.0 - margin
    shares = shares_K.tolist()
    counts = [0] * len(shares)
    sequence = np.zeros(length, dtype=np.int16)
    for position in range(length):
        chosen, soonest = 0, float("inf")
        for task, share in enumerate(shares):
            lag = share * (position + 1) - counts[task]
            if lag >= due_lag:
                # How many positions on the lag would pass its largest value.
                deadline = (largest_lag - lag) / share
                if deadline < soonest:
                    chosen, soonest = task, deadline
        sequence[position] = chosen
        counts[chosen] += 1
    return sequence


def _changing_examples(shares_TK: np.ndarray) -> np.ndarray:
    """The chairman assignment for shares that change: share_i * t becomes the sum of the shares until t.

    Tijdeman proves it for these too. Draw n of a task (from 0) may be served once that sum reaches n + 1/(2K-2), and
    must be before it passes n + 1 - 1/(2K-2). Of the draws that may be served, the one with the earliest deadline is.
    """
    length, num_tasks = shares_TK.shape
    margin = 1.0 / (2 * num_tasks - 2)
    releases, keys = [], []
    for task in range(num_tasks):
        asked_T = np.cumsum(shares_TK[:, task])
        draws = np.arange(int(asked_T[-1]) + 1)
        releases.append(np.searchsorted(asked_T, draws + margin - ROUNDING))
        deadlines = np.searchsorted(asked_T, draws + 1.0 - margin + ROUNDING, side="right")
        keys.append(deadlines * num_tasks + task)  # in the order of deadlines, then of tasks
    release = np.concatenate(releases)
    by_release = np.argsort(release, kind="stable")
    release_T, key_T = release[by_release].tolist(), np.concatenate(keys)[by_release].tolist()
    sequence = np.zeros(length, dtype=np.int16)
    ready: list[int] = []
    begun = 0
    for position in range(length):
        # In exact numbers a draw is always ready; with rounding, the next one stands in for it.
        while begun < len(release_T) and (release_T[begun] <= position or not ready):
            heapq.heappush(ready, key_T[begun])
            begun += 1
        sequence[position] = heapq.heappop(ready) % num_tasks
    return sequence


def _steady_tokens(shares_K: np.ndarray, *, length: int, lengths: Sequence[Iterable[int]]) -> np.ndarray:
    """WF2Q (Bennett and Zhang 1996, "WF2Q: Worst-case Fair Weighted Fair Queueing", INFOCOM) without idle tasks.

    Think of a fluid that serves every task at its share, with the tokens served as the clock. It begins an example
    when it has served all before it (its start), and completes it at its deadline. Of the examples that the fluid has
    begun by now, take the one with the earliest deadline. With l the longest example of all,
    -l <= share_i * tokens(t) - tokens_i(t) <= l at every prefix t:

    Ahead: what is taken has been begun, so its task was not ahead; taking it puts it (1 - share_i) l ahead at most.

    Behind: say example p completes at f, with deadline D. Go back from f to the last example with a later deadline
    than D, taken at t0. Everything taken between it and f had not been begun by t0, or it would have been taken
    instead, and has its deadline by D; so the fluid serves all of it within (t0, D], and f <= t0 + l + (D - t0). An
    example is at most l tokens late. If task i is d behind and its next example has a <= d tokens, its deadline was
    (d - a) / share_i ago and it completes no sooner than in a tokens: (d - a) / share_i + a <= l, so d <= l.
    """
    shares = shares_K.tolist()
    draws = [iter(task_lengths) for task_lengths in lengths]
    served = [0] * len(shares)
    waiting = [(0.0, task) for task, share in enumerate(shares) if share > 0.0]
    ready: list[tuple[float, int, int]] = []
    sequence = np.zeros(length, dtype=np.int16)
    now = 0
    for position in range(length):
        # In exact numbers some task is never ahead; with rounding, the one that is ahead the least stands in for it.
        while waiting and (waiting[0][0] <= now or not ready):
            _, task = heapq.heappop(waiting)
            tokens = next(draws[task])
            heapq.heappush(ready, ((served[task] + tokens) / shares[task], task, tokens))
        _, task, tokens = heapq.heappop(ready)
        sequence[position] = task
        now += tokens
        served[task] += tokens
        heapq.heappush(waiting, (served[task] / shares[task], task))
    return sequence


def _changing_tokens(shares_TK: np.ndarray, *, lengths: Sequence[Iterable[int]]) -> np.ndarray:
    """WF2Q for shares that change by position: what was asked of task i is the sum of share_i(t) * length(t).

    When a share changes, in tokens, depends on the lengths of what is drawn until then, so deadlines need a forecast
    of the tokens before each position. If it comes true, the proof of `_steady_tokens` holds word for word. Whatever
    the forecast, no task is ever more than one longest example ahead; all lags sum to 0, so that none is more than
    K-1 behind. Thus two tasks need one try, and others are tried again, with the tokens that the last try came to as
    the forecast, until none is more than one behind. Repeats that go round in circles are broken by going only part
    of the way. If no try keeps to one longest example, the best one is the order: so it came in 1 of 89 000
    random cases of up to 12 tasks with up to 5 jumps in 120 positions (1.6 longest examples behind).
    """
    means = [float(np.mean(list(islice(task_lengths, FORECAST_DRAWS)))) for task_lengths in lengths]
    # Shares w of the tokens are w_i / mean_i of the draws, up to a factor: a draw has 1 / sum(w_i / mean_i) tokens.
    forecast_T1 = np.concatenate([[0.0], np.cumsum(1.0 / (shares_TK / means).sum(axis=1))])
    best, best_lag = np.zeros(0, dtype=np.int16), float("inf")
    for attempt in range(TRIES):
        sequence, tokens_T = _serve(shares_TK, lengths=lengths, forecast_T1=forecast_T1)
        lag = max(
            np.max(np.abs(np.cumsum(tokens_T * (share_T - (sequence == task)))))
            for task, share_T in enumerate(shares_TK.T)
        )
        if lag < best_lag:
            best, best_lag = sequence, float(lag)
        if best_lag <= np.max(tokens_T) * (1.0 + ROUNDING):
            break
        part = 1.0 if attempt < 3 else attempt * 0.618034 % 1.0  # multiples of the golden ratio repeat no value
        forecast_T1 += part * (np.concatenate([[0.0], np.cumsum(tokens_T)]) - forecast_T1)
    return best


def _serve(
    shares_TK: np.ndarray, *, lengths: Sequence[Iterable[int]], forecast_T1: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One try: the tasks and the lengths of all positions, with deadlines as if the forecast were true."""
    length, num_tasks = shares_TK.shape
    asked_KT1 = np.zeros((num_tasks, length + 1))
    np.cumsum((shares_TK * np.diff(forecast_T1)[:, None]).T, axis=1, out=asked_KT1[:, 1:])

    def deadline(task: int, tokens: float) -> float:
        beyond = max(0.0, tokens - asked_KT1[task, -1])
        return float(np.interp(tokens, asked_KT1[task], forecast_T1)) + beyond

    draws = [iter(task_lengths) for task_lengths in lengths]
    heads = [next(task_draws) for task_draws in draws]
    ends = [float(tokens) for tokens in heads]
    deadlines = [deadline(task, end) for task, end in enumerate(ends)]
    lags = [0.0] * num_tasks
    sequence, tokens_T = np.zeros(length, dtype=np.int16), np.zeros(length, dtype=np.int64)
    for position in range(length):
        shares = shares_TK[position].tolist()
        begun = [
            task for task in range(num_tasks) if lags[task] > -ROUNDING and (shares[task] or lags[task] > ROUNDING)
        ]
        chosen = min(begun or [int(np.argmax(lags))], key=deadlines.__getitem__)
        tokens = heads[chosen]
        sequence[position], tokens_T[position] = chosen, tokens
        lags = [lag + share * tokens for lag, share in zip(lags, shares, strict=True)]
        lags[chosen] -= tokens
        heads[chosen] = next(draws[chosen])
        ends[chosen] += heads[chosen]
        deadlines[chosen] = deadline(chosen, ends[chosen])
    return sequence, tokens_T

"""Tuning constants: numbers that change speed and memory, and leave results equal up to rounding.

Each line ends with unit | machine | date of the figure. The machine is that of the measurement behind the number, as
far as comments and commits name it. Constants that results depend on live in the modules that define the results.
"""

from __future__ import annotations

from typing import Final

# --- engine ---------------------------------------------------------------------------------------------------------

MAX_BATCH_TOKENS: Final = 256  # tokens | CPU, not recorded | 2026-11-21
"""Tokens per pass. Passes of 512 are about as fast per token (GPT-2 in float32: 12 % slower; a Llama in bfloat16: 5 %
faster), but requests that write wait twice as long for them."""

MIN_MATCHED_TOKENS: Final = 8  # tokens | CPU, not recorded | 2026-11-21
"""The shortest cached prefix that is reused. A pass over 8 tokens costs as much as a pass over one, because reading the
weights dominates. GPT-2 124M: 32 ms up to 8 tokens, then 1.1 ms each; copying the K/V of 16 tokens takes 0.16 ms."""

MIN_SHARED_TOKENS: Final = 16  # tokens | CPU, not recorded | 2026-11-21
"""The shortest prefix that a prompt waits for, which delays it by one pass. It pays if the shared tokens double the
time of a pass: 30 tokens in float32 GPT-2 for one waiting prompt, 15 for two, and 20 in larger bfloat16 models."""

SPARE_CANDIDATES: Final = 4  # tokens | not recorded | 2026-11-21
"""Candidates that are listed beyond the k best."""

FEW_ALLOWED_TOKENS: Final = 64  # tokens | not recorded | 2026-11-21
"""If no row has more allowed tokens than this, noise is computed only for the allowed tokens."""

NOISE_TOKENS_PER_CALL: Final = 1 << 18  # tokens | not recorded | 2026-11-21
"""Noise is computed for this many tokens in one call, with 2 MiB of intermediate numbers."""

PROMPT_LOGITS_PER_CALL: Final = 1 << 21  # logits | Intel Xeon (Sapphire Rapids), 2 cores | 2026-11-30
"""Prompt positions are scored for this many logits in one call, with 8 MiB of intermediate numbers."""

POLL_SECONDS: Final = 0.001  # seconds | not recorded | 2026-11-21
"""Time between checks if another engine holds the memory of a shared draft model."""

COMPILED_GRAMMARS: Final = 64  # grammars | not recorded | 2026-11-30
"""Compiled grammars that are kept per tokenizer, the most recently used ones."""

# --- processors -----------------------------------------------------------------------------------------------------

TOP_K_BLOCK: Final = 64  # tokens | not recorded | 2026-11-20
"""Top-k on a CPU first finds the best blocks of this many tokens."""

MASS_WIDTHS: Final = (64, 1024, 8192)  # tokens | not recorded | 2026-11-20
"""Top-p and typical-p sort this many tokens, and the next number if these do not hold the wanted mass."""

# --- KV cache -------------------------------------------------------------------------------------------------------

SOFT_MAX_SEQUENCES: Final = 256  # sequences | not recorded | 2026-11-29
"""The soft limit on live sequences. Far fewer rows keep a CPU busy, so that waiting costs a large batch nothing."""

CACHE_MEMORY_SHARE: Final = 0.5  # of the free memory | not recorded | 2026-11-29
"""The soft limit on the memory of the KV cache."""

CACHED_TOKENS: Final = 4096  # tokens | not recorded | 2026-11-30
"""Free slots keep their K/V if all slots hold at most this many tokens together, or as many as were once live."""

SMALLEST_SLOT: Final = 64  # tokens | not recorded | 2026-11-20
"""The capacity of the smallest size class."""

FIRST_POOL_TOKENS: Final = 512  # tokens | not recorded | 2026-11-20
"""A size class starts with slots for at least this many tokens."""

LARGEST_POOL_TOKENS: Final = 1 << 14  # tokens | not recorded | 2026-11-20
"""A pool is not enlarged beyond this many tokens, because all its K/V move when it grows."""

LONG_SEGMENT: Final = 16  # tokens | not recorded | 2026-11-20
"""Segments of at least this many tokens are copied into their slots one by one."""

FEW_COPIES: Final = 3  # copies | not recorded | 2026-11-21
"""More groups of shorter segments than this share one indexed write."""

KEYS_PER_CALL_COST: Final = 64  # keys | CPU, not recorded | 2026-11-20
"""An attention call costs a query about as much as this many more keys: 12 heads of 64 in float32, 4 in bfloat16."""

FEW_QUERIES: Final = 32  # queries | CPU, not recorded | 2026-11-21
"""With more queries, the keys of a head stay in the CPU cache, so that folding heads into queries does not help."""

MAX_BLOCK_QUERIES: Final = 512  # queries | not recorded | 2026-11-21
"""The most queries per attention call. More queries would compute many scores that the mask removes."""

MIN_WINDOW_QUERIES: Final = 64  # queries | not recorded | 2026-11-21
"""With a sliding window, a call has as many queries as the window has keys, but at least this many."""

MAX_MANUAL_SCORES: Final = 1 << 22  # scores | not recorded | 2026-11-21
"""The most scores per call of `manual_attention`, which holds them in memory."""

MIN_SHARED_PREFIX: Final = 32  # tokens | not recorded | 2026-11-21
"""The shortest prefix that shared-prefix attention looks for."""

MIN_SAVED_BYTES: Final = 3 << 20  # bytes per layer | CPU, not recorded | 2026-11-21
"""The least saving that pays for the second call of shared-prefix attention. Both ways are equally fast at 2 to 3 MiB,
and the second is twice as fast from 6 MiB on (12 heads, and 4 key heads for 32, of width 64)."""

# The trial of the cache dtype: keys and values of this size exceed the CPU cache.
DTYPE_TRIAL_KEYS: Final = 1024  # keys per layer | not recorded | 2026-11-21
DTYPE_TRIAL_LAYERS: Final = 8  # layers | not recorded | 2026-11-21
DTYPE_TRIAL_BYTES: Final = 1 << 26  # bytes of float32 keys and values | not recorded | 2026-11-21

WIDER_CACHE_GAIN: Final = 1.2  # ratio of times | not recorded | 2026-11-21
"""The cache is widened to float32 only if attention in half precision takes longer by this factor. So timing noise does
not change memory and rounding from run to run."""

# --- linear layers --------------------------------------------------------------------------------------------------

TRIAL_ROWS: Final = (1, 5, 16, 64)  # rows | not recorded | 2026-11-30
"""The autotune trial times these numbers of rows: greedy decoding, beams, a batch, and a prompt."""

TRIAL_PASSES: Final = (32, 32, 32, 3)  # passes | not measured | 2026-11-30
"""The passes of each of these numbers of rows in a usual mix: three texts of 32 tokens, each after a prompt."""

TRIAL_ROUNDS: Final = 3  # rounds | not recorded | 2026-11-30
"""The autotune trial takes the shortest time of this many rounds."""

TUNING_SECONDS: Final = 2.0  # seconds | not recorded | 2026-11-30
"""The most time that trials take on a machine during loading, in all processes together."""

BUSY_MACHINE: Final = 1.5  # ratio of times | Intel Xeon, 2 cores, idle and busy | 2026-11-30
"""Trials are not kept for later runs if the median time of reading memory exceeds the shortest one by this factor, or
if all these times together exceed the CPU time by it."""

CLEARLY_FASTER: Final = 0.9  # ratio of times | not recorded | 2026-11-21
"""A plan is replaced only by a plan that takes at most this part of its time. So noise does not change rounding."""

LARGEST_TRIAL: Final = 1 << 24  # weights | not recorded | 2026-11-21
"""Larger layers behave like layers of this size."""

SMALLEST_TRIAL: Final = 1 << 17  # weights | AMD EPYC (Zen 4), 1 thread | 2026-11-30
"""Smaller layers are packed without a trial. Layers of 256 x 256 numbers are 1.4 times as fast with one row, 2.6 times
with five; in layers of 64 x 64, a call with one row takes 2 microseconds longer than F.linear."""

USUAL_CPU_CACHE: Final = 32 << 20  # bytes | not recorded | not recorded
"""The assumed last-level cache if the system does not report its size."""

LARGEST_CPU_CACHE: Final = 512 << 20  # bytes | Intel Xeon with a cache of 260 MiB | 2026-11-30
"""The autotune trial assumes at most this last-level cache, to limit its memory. A cycle over 64 MiB stays in a cache
of 260 MiB, and reads bfloat16 weights at 26 GB/s instead of 18."""

ROUNDED_AT_ONCE: Final = 1 << 19  # numbers | not recorded | 2026-11-21
"""Quantization rounds this many numbers at once."""

# --- replay and CUDA graphs -----------------------------------------------------------------------------------------

REPLAY_MAX_ROWS: Final = 64  # rows | not recorded | 2026-11-21
"""The most rows of a replayed pass: with more rows, the module tree costs little beside the arithmetic."""

REPLAY_MIN_PASSES: Final = 24  # passes | AMD EPYC, 2 cores | 2026-11-29
"""Passes before a pass is recorded, which takes about 60 ms for the embedded model: too long for a short text."""

MIN_SUBGRAPH_CALLS: Final = 3  # calls | Intel Xeon with AMX, 2 cores | 2026-12-01
"""The fewest calls of kernels that are recorded together."""

MIN_TABLE_CALLS: Final = 3  # calls | AMD EPYC (Zen 4), 2 cores | 2026-12-01
"""The fewest calls on the positions of a pass that become lookups in tables."""

MIN_SUBGRAPH_PASSES: Final = 4  # passes | Intel Xeon with AMX, 2 cores | 2026-12-01
"""Passes of one size before the calls of kernels are recorded."""

MAX_COMMAND_BUFFERS: Final = 32  # sizes | not measured | 2026-12-01
"""Recorded sizes of a pass, at most: a step of a 1.1B Llama takes 60 KB per size."""

GRAPH_MAX_ROWS: Final = 64  # rows | not measured on a GPU yet | 2026-11-21
"""The most rows of a CUDA graph: with more rows, launching kernels costs little beside running them."""

# --- generic and seq2seq runtimes -----------------------------------------------------------------------------------

MAX_KERNEL_QUERIES: Final = 4  # tokens | not recorded | 2026-12-01
"""New tokens per row of an encoder-decoder, at most, that our kernel attends: it reads all keys for each of them."""

TOKENS_PER_CALL: Final = 16  # tokens | not recorded | 2026-11-21
"""A call over this many tokens costs about as much as a call over one. If a model reads one token per call on top of
its cache, reading the whole sequence again is faster for many new tokens."""

MAX_EARLIER_STATES: Final = 8  # states | not recorded | 2026-11-21
"""Earlier recurrent states that are kept while a feed is read. Each is as large as the newest."""

MAX_BATCH_SOURCES: Final = 16  # sources | not recorded | 2026-11-21
"""Sources per encoder pass. Larger passes are hardly faster, and their activations take more memory."""

MAX_IDLE_SOURCES: Final = 8  # sources | not recorded | 2026-11-30
"""Encoder outputs that wait for another request with the same audio or image. One of Whisper large takes 0.5 GB in
float32, and one of Whisper tiny 18 MB."""

# --- doors ----------------------------------------------------------------------------------------------------------

MAX_LAZY_REQUESTS: Final = 32  # requests | not recorded | 2026-11-29
"""The most running requests if a pipeline reads inputs from an iterator and `batch_size` is not given."""

SCORED_TEXTS: Final = 64  # texts | not recorded | 2026-11-29
"""`unspool score` scores this many texts of a file at once."""

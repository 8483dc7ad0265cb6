/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Log-linear buckets: 16 for each power of two, each as wide as a sixteenth of that, and one for each number below 16.
 * The same as ig/buckets.py, which has their bounds. The logarithm by halves, since BPF has no instruction for it.
 */
#define BUCKETS 976	/* of 64-bit numbers */

static inline __attribute__((always_inline)) u16 bucket_of(u64 value)
{
	u64 rest = value;
	u32 power = 0;

	if (value < 16)
		return value;
#define HALVE(bits) if (rest >> bits) { rest >>= bits; power += bits; }
	HALVE(32)
	HALVE(16)
	HALVE(8)
	HALVE(4)
	HALVE(2)
	HALVE(1)
#undef HALVE
	return (power - 3) * 16 + (value >> (power - 4) & 15);
}

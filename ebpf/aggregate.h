/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Counts by key, which user space reads at an interval: no event crosses the ring. Included after struct key, which
 * has a cgroup, and struct value, both of whole numbers; keys may have arrays of bytes too, values arrays of numbers.
 * A program adds to what value_of() returns, with __sync_fetch_and_add() unless AGGREGATE_TYPE is "percpu_hash".
 *
 * Where several values become one (of processors, of filtered rows), their fields are added up; of fields called
 * max_NAME the largest is taken, of min_NAME the smallest but 0, which is no value.
 */
#ifndef AGGREGATE_TYPE /* one that evicts nothing: not "lru_hash" */
#define AGGREGATE_TYPE "hash"
#endif
#ifndef MOST_KEYS
#define MOST_KEYS 65536
#endif
#ifndef MOST_OTHERS
#define MOST_OTHERS 4096
#endif
#ifndef OTHER_KEY /* what is left of a key that there is no room for */
#define OTHER_KEY(key) ((struct key){ .cgroup = (key)->cgroup })
#endif

LOSS(OTHER_KEYS, "")
LOSS(LOST_COUNTS, "not counted: too many cgroups, or interrupted while it was counted")

/*
 * User space increments the epoch (1 << 10 is BPF_F_MMAPABLE), waits until the programs that run have ended, reads and
 * deletes what was counted in the epochs before: nothing is counted twice or lost, and no program waits. Where the
 * kernel cannot wait for programs (one processor online, or nohz_full), user space waits for 50 ms. Of a program that is
 * preempted for longer, an element that it adds later is read with the next epoch; what it adds to an element
 * that is deleted by then is lost, or added to the key that has the element's memory now.
 */
BPF_F_TABLE("array", u32, u64, epoch, 1, 1 << 10);
struct counted { struct key key; u64 epoch; };
BPF_TABLE(AGGREGATE_TYPE, struct counted, struct value, counts, MOST_KEYS);
/* One for each OTHER_KEY. */
BPF_TABLE(AGGREGATE_TYPE, struct counted, struct value, others, MOST_OTHERS);
BPF_ARRAY(no_value, struct value, 1);

/* The value of `counted->key`, or of its OTHER_KEY, which then is there. */
static __always_inline struct value *value_at(struct counted *counted)
{
	struct key *key = &counted->key;
	struct value *none, *value;
	u32 zero = 0;
	u64 *now = epoch.lookup(&zero);

	none = no_value.lookup(&zero);
	if (!now || !none)
		return NULL;
	counted->epoch = *now;
	value = counts.lookup(counted);
	if (value)
		return value;
	counts.insert(counted, none); /* unless another processor does it */
	value = counts.lookup(counted);
	if (value)
		return value;
	*key = OTHER_KEY(key);
	value = others.lookup(counted);
	if (!value) {
		others.insert(counted, none);
		value = others.lookup(counted);
	}
	count_lost(value ? OTHER_KEYS : LOST_COUNTS);
	return value;
}

static __always_inline struct value *value_of(struct key *key)
{
	struct counted counted = { .key = *key };

	return value_at(&counted);
}

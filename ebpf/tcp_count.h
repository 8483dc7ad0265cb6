/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * With COUNT_EVENTS no event is written to the ring: attempts that have ended, accepts and closes are counted by
 * owner, far end, outcome and bucket (aggregate.h), so that a histogram takes room only for buckets in use.
 * COUNT_RETRANSMITS counts segments that were sent again, whatever becomes of events: tcp_retransmits.h.
 */
#include "retransmit.h"

OPTION(COUNT_EVENTS, 0)
OPTION(COUNT_RETRANSMITS, 0)
OPTION(REPORT_FAILURES, 0)	/* attempts that did not succeed are written to the ring all the same, not counted */
#ifndef MOST_KEYS
#define MOST_KEYS (COUNT_EVENTS || COUNT_RETRANSMITS ? 65536 : 1)
#endif
#define MOST_OTHERS (COUNT_EVENTS || COUNT_RETRANSMITS ? 16384 : 1)
#define OTHER_KEY(key) ((struct key){ .cgroup = (key)->cgroup, .type = (key)->type, .outcome = (key)->outcome, \
				      .direction = (key)->direction, .kind = (key)->kind, .bucket = (key)->bucket })

struct key {
	u64 cgroup;
	u8 saddr[16], daddr[16];
	char zone[DEVICE_NAME];
	u32 netns, mntns;
	u16 sport, dport;	/* only that at which one end listens: the other one, which the kernel chose, is 0 */
	u16 bucket;		/* of the latency, of closes the duration; 0 if there is none */
	u8 version, type, outcome, direction;
	u8 kind;		/* enum kind, of segments that were sent again; else 0 */
	u8 spare[5];
};

struct value {
	u64 count, retransmits, sent, received;
	u64 total_latency;		/* ns; of closes, of durations */
	/* Of two processors that store a largest one at once, in the same bucket, either may win. */
	u64 max_latency;		/* ns; of closes, of the duration */
	u64 min_time, max_time;		/* ns since boot: of the first and of the last */
};

#include "aggregate.h"
#include "buckets.h"

/* What is counted needs no more of its owner. */
static __always_inline void read_counted_owner(struct owner *owner, u64 cgroup)
{
	struct task_struct *task = CURRENT_TASK();
	struct nsproxy *namespaces = LOAD(task, nsproxy);
	struct mnt_namespace *mntns = LOAD(namespaces, mnt_ns);

	owner->cgroup = cgroup;
	owner->mntns = LOAD(mntns, ns.inum);
}

/* Counts as many events, or segments of a kind. */
static __always_inline void count(struct event *event, u8 kind, u32 number)
{
	u64 latency = event->type == CONNECT ? event->latency : event->duration;
	struct counted counted = { .key = {
		.cgroup = event->owner.cgroup, .netns = event->netns, .mntns = event->owner.mntns, .bucket = bucket_of(latency),
		.version = event->version, .type = event->type, .outcome = event->outcome, .direction = event->direction, .kind = kind,
		.dport = event->direction == OUTGOING || (kind && event->direction != INCOMING) ? event->dport : 0,
		.sport = event->direction == INCOMING ? event->sport : 0,
	} };
	struct value *value;

	__builtin_memcpy(counted.key.saddr, event->saddr, 16);
	__builtin_memcpy(counted.key.daddr, event->daddr, 16);
	__builtin_memcpy(counted.key.zone, event->zone, DEVICE_NAME);
	value = value_at(&counted);
	if (!value)
		return;
	__sync_fetch_and_add(&value->count, number);
	if (event->type == CONNECT && event->retransmits)
		__sync_fetch_and_add(&value->retransmits, event->retransmits);
	if (event->sent)
		__sync_fetch_and_add(&value->sent, event->sent);
	if (event->received)
		__sync_fetch_and_add(&value->received, event->received);
	if (latency)
		__sync_fetch_and_add(&value->total_latency, latency);
	if (latency > value->max_latency)
		value->max_latency = latency;
	if (!value->min_time)
		value->min_time = event->timestamp;
	if (event->timestamp > value->max_time)
		value->max_time = event->timestamp;
}

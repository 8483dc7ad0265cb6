/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Signals: what the kernel does to the SYNs of attempts, and to the answers. A segment is the attempt's whose initial
 * sequence number it has or acknowledges: addresses and ports may be translated on the way, that number is not.
 */
#include "segment.h"

OPTIONAL_HOOK(raw_tp__kfree_skb, "--why: dropped segments are not seen")
OPTIONAL_HOOK(raw_tp__icmp_send, "--why: ICMP errors that this host sends are not seen")
OPTIONAL_HOOK(raw_tp__tcp_send_reset, "--why: resets that this host sends are not seen")
OPTIONAL_HOOK(raw_tp__tcp_receive_reset, "--why: received resets are not seen")
SIGNAL_HOOK(raw_tp__kfree_skb)
SIGNAL_HOOK(raw_tp__icmp_send)
SIGNAL_HOOK(raw_tp__tcp_send_reset)
SIGNAL_HOOK(raw_tp__tcp_receive_reset)
KERNEL_TRACEPOINT(icmp_send)

#define RESET_RECEIVED 1
#define RESET_SENT 2
#define LEAVING 4		/* it was dropped before it left the network namespace that it was made in */

/* Why the kernel dropped a segment: its own names, which it numbers anew in each version. */
enum drop {
	NOT_DROPPED, NETFILTER_DROP, NO_SOCKET, SOCKET_FILTER, SOCKET_BACKLOG, TCP_LISTEN_OVERFLOW, TCP_CSUM, IP_CSUM,
	IP_RPFILTER, IP_OUTNOROUTES, IP_INNOROUTES, IP_INADDRERRORS, IPV6DISABLED, NEIGH_CREATEFAIL, NEIGH_FAILED,
	NEIGH_QUEUEFULL, NEIGH_DEAD, BPF_CGROUP_EGRESS, SECURITY_HOOK, TC_INGRESS, TC_EGRESS, XDP, XFRM_POLICY,
	QDISC_DROP, CPU_BACKLOG, PROTO_MEM, NOMEM, SUBSYS_QDISC
};
KERNEL_CASES(skb_drop_reason, SKB_DROP_REASON_,
	NETFILTER_DROP, NO_SOCKET, SOCKET_FILTER, SOCKET_BACKLOG, TCP_LISTEN_OVERFLOW, TCP_CSUM, IP_CSUM,
	IP_RPFILTER, IP_OUTNOROUTES, IP_INNOROUTES, IP_INADDRERRORS, IPV6DISABLED, NEIGH_CREATEFAIL, NEIGH_FAILED,
	NEIGH_QUEUEFULL, NEIGH_DEAD, BPF_CGROUP_EGRESS, SECURITY_HOOK, TC_INGRESS, TC_EGRESS, XDP, XFRM_POLICY,
	QDISC_DROP, CPU_BACKLOG, PROTO_MEM, NOMEM)
/* Where queues have reasons of their own (enum qdisc_drop_reason in Linux 7.2), the upper half of one says that it is theirs. */
KERNEL_CASES(skb_drop_reason_subsys, SKB_DROP_REASON_, SUBSYS_QDISC)

struct signals {
	u32 drop_netns;		/* where segments were dropped last; 0 if unknown */
	u32 answer_netns;	/* where this host's kernel answered the SYN by a reset or an ICMP error; 0 if it did not */
	u16 server_port;	/* where the SYN was dropped or answered, its destination port there: it may be translated */
	u8 drop, dropped;	/* enum drop; enum segment_kind and LEAVING */
	u8 drops;		/* how many were dropped there for that reason, one after the other; 255: or more */
	u8 icmp_type, icmp_code;
	u8 reset;		/* 1: a reset was received, 2: this host's kernel sent one, 3: both */
};

/* What is written to the ring; few events have signals, so they are one field. */
struct reported {
	struct event event;
	u8 signals[16];	/* struct signals */
};
_Static_assert(sizeof(struct signals) == sizeof(((struct reported *)0)->signals), "signals do not fit");

struct signal {
	struct signals signals;
	u16 sport, dport;	/* host order, of the client and the server as they are at that place */
	u32 spare;
};

/*
 * By initial sequence number. Two maps, so that segments of others, however many, take no room of those whose client
 * has an address that attempts were made from. The others' are kept because the client's may be translated.
 */
BPF_TABLE("lru_hash", u32, struct signal, signals, 16384);
BPF_TABLE("lru_hash", u32, struct signal, other_signals, 16384);
BPF_TABLE("lru_hash", struct halves, u32, clients, 4096);

static __always_inline void expect_signals(struct event *event)
{
	struct halves client;
	u32 one = 1;

	__builtin_memcpy(&client, event->saddr, sizeof(client));
	if (!clients.lookup(&client))
		clients.update(&client, &one);
}

/* What is known of its attempt so far; NULL if there is no room. */
static __always_inline struct signals *signals_of(struct segment *segment)
{
	struct signal new = { .sport = segment->sport, .dport = segment->dport }, *found;

	if (clients.lookup(&segment->client)) {
		found = signals.lookup(&segment->number);
		if (!found) {
			signals.update(&segment->number, &new);
			found = signals.lookup(&segment->number);
		}
	} else {
		found = other_signals.lookup(&segment->number);
		if (!found) {
			other_signals.update(&segment->number, &new);
			found = other_signals.lookup(&segment->number);
		}
	}
	return found ? &found->signals : NULL;
}

#if HAVE_enum_skb_drop_reason
static __always_inline u8 subsystem_of(u32 reason)
{
	switch (reason >> 16) {
	CASES_skb_drop_reason_subsys
	default: return NOT_DROPPED;
	}
}

static __always_inline u8 drop_of(u32 reason)
{
	switch (reason) {
	CASES_skb_drop_reason
	default: return subsystem_of(reason);
	}
}
#else
#define drop_of(reason) NOT_DROPPED
#endif

/* Since 5.17 with the reason (c504e5c2f964 "net: skb: introduce kfree_skb_reason()"); without, it is not known to be a drop. */
int raw_tp__kfree_skb(struct { u64 skb, location, reason; } *ctx)
{
	struct sk_buff *skb = (void *)ctx->skb;
	struct segment segment = {};
	struct signals *signals;
	u32 netns;
	u8 drop, leaving;

	if (!CONNECTS || !HAVE_enum_skb_drop_reason)
		return 0;
	drop = drop_of(ctx->reason);
	if (!drop || !read_segment(&segment, skb) || (drop == NO_SOCKET && segment.kind != SYN_SEGMENT))
		return 0;
	signals = signals_of(&segment);
	if (!signals)
		return 0;
	leaving = !READ(skb, skb_iif);
	netns = netns_of(skb, leaving);
	if (signals->drop != drop || signals->drop_netns != netns)
		signals->drops = 0;
	if (signals->drops < 255)
		signals->drops++;
	signals->drop_netns = netns;
	signals->server_port = segment.dport;
	signals->dropped = segment.kind | (leaving ? LEAVING : 0);
	signals->drop = drop;
	return 0;
}

/* IPv4 only: the kernel has none for ICMPv6. */
int raw_tp__icmp_send(struct { u64 skb, type, code; } *ctx)
{
	struct sk_buff *skb = (void *)ctx->skb;
	struct segment segment = {};
	struct signals *signals;

	if (!CONNECTS || !HAVE_tracepoint_icmp_send || !read_segment(&segment, skb) || segment.kind != SYN_SEGMENT)
		return 0;
	signals = signals_of(&segment);
	if (!signals)
		return 0;
	signals->icmp_type = ctx->type;
	signals->icmp_code = ctx->code;
	signals->answer_netns = netns_of(skb, !READ(skb, skb_iif));
	return 0;
}

/* Before 6.10 only where there is a socket, which is no answer to a SYN then: b533fb9cf4f7 "rstreason: make it work in trace world". */
int raw_tp__tcp_send_reset(struct { u64 sk, skb; } *ctx)
{
	struct sk_buff *skb = (void *)ctx->skb;
	struct segment segment = {};
	struct signals *signals;

	if (!CONNECTS || !skb || !read_segment(&segment, skb) || segment.kind != SYN_SEGMENT)
		return 0;
	signals = signals_of(&segment);
	if (!signals)
		return 0;
	signals->reset |= RESET_SENT;
	signals->server_port = segment.dport;
	signals->answer_netns = netns_of(skb, 0);
	return 0;
}

static __always_inline u32 number_of(struct sock *sk)
{
	return READ((struct tcp_sock *)sk, write_seq) - 1; /* until it is connected, the SYN is all that was written */
}

int raw_tp__tcp_receive_reset(struct { u64 sk; } *ctx)
{
	struct sock *sk = (void *)ctx->sk;
	struct segment segment = {};
	struct signals *signals;
	struct event *event;

	if (!CONNECTS || READ(sk, __sk_common.skc_state) != SYN_SENT)
		return 0;
	event = attempt_of(sk);
	if (!event)
		return 0;
	__builtin_memcpy(&segment.client, event->saddr, sizeof(segment.client));
	segment.number = number_of(sk);
	segment.sport = local_port(sk);
	segment.dport = event->dport;
	signals = signals_of(&segment);
	if (signals)
		signals->reset |= RESET_RECEIVED;
	return 0;
}

/* Those of an attempt, NULL if there are none. */
static __always_inline struct signals *find_signals(struct sock *sk, struct event *event)
{
	u32 number = number_of(sk);
	struct signal *found = signals.lookup(&number);

	if (!found)
		found = other_signals.lookup(&number);
	return found && (found->sport == event->sport || found->dport == event->dport) ? &found->signals : NULL;
}

/* Returns 0 if there was room. */
static __always_inline int report(struct sock *sk, struct event *event)
{
	struct reported *reported = events.ringbuf_reserve(sizeof(*reported));
	struct signals *signals = NULL;

	if (!reported)
		return 1;
	reported->event = *event;
	if (sk && (event->outcome != DONE || event->retransmits))
		signals = find_signals(sk, event);
	if (signals)
		*(struct signals *)reported->signals = *signals;
	else
		__builtin_memset(reported->signals, 0, sizeof(reported->signals));
	events.ringbuf_submit(reported, BPF_RB_NO_WAKEUP);
	return 0;
}

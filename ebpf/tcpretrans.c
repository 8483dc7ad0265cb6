/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Segments that TCP sends again. A timer sends most of them, so the current task may be anyone: the owner is the
 * socket's cgroup, in which it was made; of a SYN-ACK it is the listener's.
 */
#include "ig.h"
#include "device.h"

OPTION(FILTER_PORT, ANY)	/* only connections with this port at the far end */

/* What is sent again; data may be a FIN too. */
enum kind { SYN = 1, SYN_ACK, DATA };
/* include/net/tcp_states.h */
enum state { ESTABLISHED = 1, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING };

KERNEL_STRUCT(sock_common, skc_bound_dev_if)
KERNEL_STRUCT(tcp_sock, total_retrans)
KERNEL_STRUCT(request_sock, __req_common, num_retrans)

struct event {
	u64 timestamp;
	struct owner owner;	/* only its cgroup */
	u32 netns;
	u16 sport, dport;	/* host order */
	u8 saddr[16], daddr[16];
	char zone[DEVICE_NAME];	/* of link-local addresses */
	u32 retransmits;	/* of this connection so far, this one included */
	u8 version, kind, state, spare;
};

static __always_inline int is_mapped(const void *address)
{
	const u32 *word = address;

	return !word[0] && !word[1] && word[2] == __builtin_bswap32(0xffff);
}

static __always_inline void read_ends(struct event *event, struct sock_common *from)
{
	struct sock_common common;

	bpf_probe_read_kernel(&common, sizeof(common), from);
	event->netns = READ(common.skc_net.net, ns.inum);
	event->sport = common.skc_num;
	event->dport = NTOHS(common.skc_dport);
	event->state = common.skc_state;
	if (common.skc_family == AF_INET6 && !is_mapped(&common.skc_v6_daddr)) {
		event->version = 6;
		__builtin_memcpy(event->saddr, &common.skc_v6_rcv_saddr, 16);
		__builtin_memcpy(event->daddr, &common.skc_v6_daddr, 16);
		if (is_link_local(event->daddr) || is_link_local(event->saddr))
			read_device(event->zone, common.skc_net.net, common.skc_bound_dev_if);
	} else {
		event->version = 4;
		__builtin_memcpy(event->saddr, &common.skc_rcv_saddr, 4);
		__builtin_memcpy(event->daddr, &common.skc_daddr, 4);
	}
}

static __always_inline int retransmitted(struct sock *owner, struct sock_common *common, u8 kind, u32 retransmits)
{
	struct event event = { .kind = kind, .retransmits = retransmits };

	if (!socket_wanted(owner, &event.owner.cgroup))
		return 0;
	read_ends(&event, common);
	if (FILTER_PORT != ANY && event.dport != FILTER_PORT)
		return 0;
	if (kind == SYN_ACK)
		event.state = SYN_RECV; /* the request's own is TCP_NEW_SYN_RECV, which nothing else shows */
	event.timestamp = bpf_ktime_get_ns();
	if (events.ringbuf_output(&event, sizeof(event), BPF_RB_NO_WAKEUP))
		count_lost(LOST_RING);
	return 0;
}

int raw_tp__tcp_retransmit_skb(struct { u64 sk; } *ctx)
{
	struct sock *sk = (void *)ctx->sk;
	u8 state = READ(sk, __sk_common.skc_state);

	return retransmitted(sk, &sk->__sk_common, state == SYN_SENT ? SYN : state == SYN_RECV ? SYN_ACK : DATA,
			     READ((struct tcp_sock *)sk, total_retrans));
}

/* Its count goes up afterwards. */
int raw_tp__tcp_retransmit_synack(struct { u64 listener, request; } *ctx)
{
	struct request_sock *request = (void *)ctx->request;

	return retransmitted((void *)ctx->listener, &request->__req_common, SYN_ACK, READ(request, num_retrans) + 1);
}

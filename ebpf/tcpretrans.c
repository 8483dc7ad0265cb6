/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Segments that TCP sends again. A timer sends most of them, so the current task may be anyone: the owner is the
 * socket's cgroup, in which it was made; of a SYN-ACK it is the listener's.
 */
#include "ig.h"
#include "address.h"
#include "retransmit.h"

OPTION(FILTER_PORT, ANY)	/* only connections with this port at the far end */

/* include/net/tcp_states.h */
enum state { ESTABLISHED = 1, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING };

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

#include "ends.h"

static __always_inline int retransmitted(struct sock *owner, struct sock_common *common, u8 kind, u32 retransmits)
{
	struct event event = { .kind = kind, .retransmits = retransmits };

	if (!socket_wanted(owner, &event.owner.cgroup))
		return 0;
	read_socket(&event, common);
	event.state = kind == SYN_ACK ? SYN_RECV : READ(common, skc_state); /* a request's own is TCP_NEW_SYN_RECV */
	if (FILTER_PORT != ANY && event.dport != FILTER_PORT)
		return 0;
	event.timestamp = bpf_ktime_get_ns();
	if (events.ringbuf_output(&event, sizeof(event), BPF_RB_NO_WAKEUP))
		count_lost(LOST_RING);
	return 0;
}

int raw_tp__tcp_retransmit_skb(struct retransmit_skb *ctx)
{
	struct sock *sk = (void *)ctx->sk;
	u8 state = READ(sk, __sk_common.skc_state);

	if (!WAS_SENT(ctx))
		return 0;
	return retransmitted(sk, &sk->__sk_common, KIND_IN(state), READ((struct tcp_sock *)sk, total_retrans));
}

/* Its count goes up afterwards. */
int raw_tp__tcp_retransmit_synack(struct retransmit_synack *ctx)
{
	struct request_sock *request = (void *)ctx->request;

	return retransmitted((void *)ctx->listener, &request->__req_common, SYN_ACK, READ(request, num_retrans) + 1);
}

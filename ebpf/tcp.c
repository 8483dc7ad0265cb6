/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * TCP connects, accepts and closes. Every change of every TCP socket's state passes one tracepoint;
 * the system calls' own tell what never got that far, and who accepted.
 *
 * TRACE_CONNECT, TRACE_ACCEPT, TRACE_CLOSE	what is asked for
 * LATENCY		a connect is told when it is answered or given up, not already when a SYN goes unanswered
 * FAILURE_ONLY		only attempts that did not succeed
 * FILTER_PORT		destination port
 * MIN_LATENCY		ns; connects that ended sooner are not told
 */
#include "tcp.h"

#include "tcp_close.h"
#include "tcp_connect.h"
#include "tcp_accept.h"

#if defined(TRACE_CONNECT) || defined(TRACE_CLOSE)
struct change { u64 sk, old, new; };

static __always_inline int change_state(struct change *change, int behind)
{
	struct sock *sk = (void *)change->sk;
	int old = change->old, new = change->new;

#ifdef TRACE_CONNECT
	if (behind && new == ASK_AGAIN) {
		ask_again(sk);
		return 0;
	}
	if (new == SYN_SENT) {
		if (!behind)
			begin_attempt(sk, 0);
		else if (!attempts.lookup(&sk) && begin_attempt(sk, 1))
			count_lost(TAKEN_OVER);
	}
	/* SYN_SENT -> SYN_RECV is a simultaneous open, not yet an answer; others come from a listener */
	else if (new != SYN_RECV && (old == SYN_SENT || (old == SYN_RECV && READ(sk, sk_socket))))
		end_attempt(sk, new);
#endif
#ifdef TRACE_CLOSE
	if (old == LISTEN && new == SYN_RECV)
		create_connection(sk, behind);
	else if ((old == ESTABLISHED || old == CLOSE_WAIT || old == SYN_RECV) &&
		 (new == FIN_WAIT1 || new == LAST_ACK || new == CLOSED))
		end_connection(sk, old, new);
#endif
	return 0;
}

int raw_tp__inet_sock_set_state(struct change *ctx)
{
	return change_state(ctx, 0);
}

int raw_tp__inet_sock_set_state__behind(struct change *ctx)
{
	return change_state(ctx, 1);
}
#endif

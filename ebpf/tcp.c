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
struct change_args { u64 common, sk; s32 old, new; };

static __always_inline int change_state(struct sock *sk, int old, int new, int behind)
{
	const int typed = ARGUMENTS_TYPED && !behind;

#ifdef TRACE_CONNECT
	if (behind && new == ASK_AGAIN) {
		ask_again(sk);
		return 0;
	}
#endif
	if (seen_in_front(sk, old << 4 | new, behind))
		return 0;
#ifdef TRACE_CONNECT
	if (new == SYN_SENT) {
		if (!behind || !attempt_of(sk))
			begin_attempt(sk, behind, typed);
	}
	/* SYN_SENT -> SYN_RECV is a simultaneous open, not yet an answer; others come from a listener */
	else if (new != SYN_RECV && (old == SYN_SENT || (old == SYN_RECV && READ_IF(typed, sk, sk_socket))))
		end_attempt(sk, new, typed);
#endif
#ifdef TRACE_CLOSE
	if (old == LISTEN && new == SYN_RECV)
		note_created(sk, typed);
	else if (is_connection(old) && (new == CLOSED || new == FIN_WAIT1 || new == LAST_ACK || new == old))
		change_connection(sk, old, new, typed);
#endif
	return 0;
}

#ifdef PREEMPTIBLE
int tp__sock__inet_sock_set_state(struct change_args *ctx)
#else
int raw_tp__inet_sock_set_state(struct change *ctx)
#endif
{
	return change_state((void *)ctx->sk, ctx->old, ctx->new, 0);
}

int raw_tp__inet_sock_set_state__behind(struct change *ctx)
{
	return change_state((void *)ctx->sk, ctx->old, ctx->new, 1);
}
#endif

#ifdef PREEMPTIBLE
int tp__raw_syscalls__sys_exit(struct exit_args *ctx)
{
	switch (native_call(ctx)) {
#ifdef TRACE_CONNECT
	case NR_CONNECT: return left_connect(ctx->ret);
#endif
#ifdef TRACE_ACCEPT
	case NR_ACCEPT: case NR_ACCEPT4: return left_accept(ctx->ret);
#endif
	}
	return 0;
}
#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * TCP connects, accepts and closes. Every change of every TCP socket's state passes one tracepoint;
 * hooks at the ends of system calls show what never got that far, and who accepted.
 *
 * TRACE_CONNECT, TRACE_ACCEPT, TRACE_CLOSE	which events are reported
 * LATENCY		a connect is reported when it is answered or given up, not already when a SYN goes unanswered
 * FAILURE_ONLY		only attempts that did not succeed
 * FILTER_PORT		destination port
 * MIN_LATENCY		ns; connects that ended sooner are not reported
 */
#include "tcp.h"

#include "tcp_close.h"
#include "tcp_connect.h"
#include "tcp_accept.h"

#if defined(TRACE_CONNECT) || defined(TRACE_CLOSE)
struct change { u64 sk, old, new; };
struct change_args { u64 common, sk; s32 old, new; };

static __always_inline int change_state(struct sock *sk, int old, int new, int backup)
{
#ifdef TRACE_CONNECT
	if (backup && new == RECHECK) {
		recheck_attempt(sk);
		return 0;
	}
#endif
	if (handled_by_primary(sk, old << 4 | new, backup))
		return 0;
#ifdef TRACE_CONNECT
	if (new == SYN_SENT) {
		if (!backup || !attempt_of(sk))
			begin_attempt(sk, backup);
	}
	/* SYN_SENT -> SYN_RECV is a simultaneous open, not yet an answer; others come from a listener */
	else if (new != SYN_RECV && (old == SYN_SENT || (old == SYN_RECV && READ(sk, sk_socket))))
		end_attempt(sk, new);
#endif
#ifdef TRACE_CLOSE
	if (old == LISTEN && new == SYN_RECV)
		note_created(sk);
	else if (is_connection(old) && (new == CLOSED || new == FIN_WAIT1 || new == LAST_ACK || new == old))
		change_connection(sk, old, new);
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

int raw_tp__inet_sock_set_state__backup(struct change *ctx)
{
	return change_state((void *)ctx->sk, ctx->old, ctx->new, 1);
}
#endif

#ifndef CALLS_BY_FEXIT
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
#endif

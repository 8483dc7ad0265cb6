/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Included after tcp.h, and no_signals.h or signals.h. Every change of every TCP socket's state passes one tracepoint;
 * hooks at the ends of system calls show what never got that far, and who accepted.
 */
static __always_inline void submit_attempt(struct sock *sk, struct event *event)
{
	if (COUNT_EVENTS && !(REPORT_FAILURES && event->type == CONNECT && event->outcome != DONE)) {
		count(event, 0, 1);
		return;
	}
	if (report(sk, event))
		count_lost(LOST_RING);
}

static __always_inline void submit(struct event *event)
{
	submit_attempt(NULL, event);
}

#include "tcp_close.h"
#include "tcp_connect.h"
#include "tcp_accept.h"
#include "tcp_retransmits.h"

static __always_inline int change_state(struct sock *sk, int old, int new, int backup)
{
	if (CONNECTS && backup && new == RECHECK)
		return recheck_attempt(sk);
	if (handled_by_primary(sk, old << 4 | new, backup))
		return 0;
	if (CONNECTS && new == SYN_SENT)
		begin_attempt(sk, backup);
	/* SYN_SENT -> SYN_RECV is a simultaneous open, not yet an answer; others come from a listener */
	else if (CONNECTS && new != SYN_RECV && (old == SYN_SENT || (old == SYN_RECV && READ(sk, sk_socket))))
		end_attempt(sk, new);
	if (CLOSES && old == LISTEN && new == SYN_RECV)
		note_created(sk);
	else if (CLOSES && is_connection(old) && (new == CLOSED || new == FIN_WAIT1 || new == LAST_ACK || new == old))
		change_connection(sk, old, new);
	return 0;
}

PAIR(sock, inet_sock_set_state, CONNECTS || CLOSES, change_state, (void *)ctx->sk, ctx->old, ctx->new)

struct tcp_destroy_sock_arguments { u64 sk; };
struct tcp_destroy_sock_fields { u64 common, sk; };

PAIR(tcp, tcp_destroy_sock, CLOSES, forget_connection, (void *)ctx->sk)

struct security_sock_graft_arguments { u64 sk, parent; };

CALL_END(connect, CONNECTS, left_connect)
CALL_END(accept, ACCEPTS, left_accept)
CALL_END(accept4, ACCEPTS, left_accept)
FUNCTION_END(security_sock_graft, ACCEPTS && !FAILURE_ONLY, report_waiting, (void *)ctx->sk)

static __always_inline int left_call(s32 number, s64 ret)
{
	if (CONNECTS && number == NR_CONNECT)
		return left_connect(ret);
	if (ACCEPTS && (number == NR_ACCEPT || number == NR_ACCEPT4))
		return left_accept(ret);
	return 0;
}

ALL_CALLS_END(CONNECTS || ACCEPTS, left_call)

/* SPDX-License-Identifier: GPL-2.0-only */
/* Whose each connection is, and its end: one event, by whichever end of it is here. */
#ifndef TRACE_CLOSE
#define disown(sk, typed)
#define adopt(sk, tracked)
#else
#define UNWANTED 0xffffffff	/* the pid of owners whose events are not asked for */
#define TOLD 0xff		/* `closed` of a connection whose end was told */

#ifdef TRACE_CONNECT
static __always_inline void finish_attempt(struct sock *sk, struct event *event, u8 outcome, u32 error, int late, int typed);
#else
#define finish_attempt(sk, event, outcome, error, late, typed)
#endif

/* Of an event that was told: the next of its socket will be the close. */
static __always_inline void become_connection(struct event *event)
{
	event->type = CLOSE;
	event->outcome = NONE;
	event->latency = event->error = event->retransmits = 0;
	event->fd = event->accept_fd = -1;
}

static __always_inline void keep_connection(struct sock *sk, struct tracked *tracked, int typed)
{
	u32 pid = tracked->event.owner.pid;

	if (READ_IF(typed, sk, sk_protocol) != IPPROTO_TCP)
		return; /* an MPTCP socket is never closed: its subflows are */
	if (track(sk, tracked) && pid && pid != UNWANTED)
		count_lost(LOST_CONNECTIONS);
}

/* A listener's: nobody's until it is accepted. */
static __always_inline void create_connection(struct sock *sk, int behind, int typed)
{
	struct tracked tracked = { .event = { .type = CLOSE, .fd = -1, .accept_fd = -1 } };

	if (!behind || !tracked_of(sk))
		keep_connection(sk, &tracked, typed);
}

/* Its close is not asked for. */
static __always_inline void disown(struct sock *sk, int typed)
{
	struct tracked tracked = { .event = { .type = CLOSE, .owner = { .pid = UNWANTED } } };

	keep_connection(sk, &tracked, typed);
}

/* Bytes that were written and wait for their turn; the FIN comes after them. */
static __always_inline u32 unsent(struct tcp_sock *tcp, int typed)
{
	return READ_IF(typed, tcp, write_seq) - READ_IF(typed, tcp, snd_nxt);
}

static __always_inline void submit_close(struct tcp_sock *tcp, struct event *event, int old, u64 since, int typed)
{
	event->timestamp = bpf_ktime_get_ns();
	event->duration = since ? event->timestamp - since : 0;
	event->sent += READ_IF(typed, tcp, bytes_sent) - READ_IF(typed, tcp, bytes_retrans);
	event->received = READ_IF(typed, tcp, bytes_received);
	if (old == CLOSE_WAIT && event->received)
		event->received--; /* the peer's FIN counts as a byte */
	submit(event);
}

/* Who holds the socket's lock is who calls; else this is a softirq in somebody's time. */
static __always_inline int is_callers(struct sock *sk, int typed)
{
	return READ_IF(typed, sk, sk_lock.owned) != 0;
}

static __always_inline void end_connection(struct sock *sk, int old, int new, int typed)
{
	struct tracked *tracked = tracked_of(sk), untold;
	struct tcp_sock *tcp;
	struct event *event;
	u64 cgroup, since = 0;

	if (old == SYN_RECV && new == CLOSED) {
		untrack(sk); /* never was established */
		return;
	}
	if (tracked) {
		event = &tracked->event;
		if (tracked->closed) {
			if (tracked->closed == TOLD)
				untrack(sk);
			return; /* by the program in front, or by accept() meanwhile */
		}
		/* accept() itself may hold the lock when the reset comes; what is closed has no error yet */
		if (!event->owner.pid && new == CLOSED && (!is_callers(sk, typed) || READ_IF(typed, sk, sk_err))) {
			tracked->closed = old; /* reset before it was accepted: accept() or the end tells */
			event->dport = NTOHS(READ_IF(typed, sk, __sk_common.skc_dport)); /* disconnecting forgets it */
			return;
		}
		tracked->closed = TOLD;
		if (event->owner.pid == UNWANTED)
			return;
		if (event->type == CONNECT) { /* no program saw the answer */
			finish_attempt(sk, event, DONE, 0, 1, typed);
			become_connection(event);
		} else {
			since = event->timestamp;
		}
	} else { /* older than the trace */
		int callers = is_callers(sk, typed);

		if (READ_IF(typed, sk, sk_protocol) != IPPROTO_TCP || (callers && !current_wanted(&cgroup)))
			return;
		untold = (struct tracked){ .event = { .type = CLOSE, .fd = -1, .accept_fd = -1 } };
		event = &untold.event;
		if (callers)
			read_owner(&event->owner, cgroup);
	}
	if (!event->owner.pid) {
#if defined(FILTER_PID) || defined(FILTER_UID)
		return;
#endif
		event->type = UNKNOWN;
	}
	if (!event->sport) { /* else it was told before, with its ends */
		read_ends(event, sk, typed);
		if (!port_wanted(event->sport) && !port_wanted(event->dport))
			return;
	}
	tcp = typed ? bpf_skc_to_tcp_sock(sk) : (void *)sk;
	if (!tcp)
		return;
	if (new == CLOSED)
		event->error = READ_IF(typed, sk, sk_err);
	else
		event->sent = unsent(tcp, typed);
	submit_close(tcp, event, old, since, typed);
	if (!tracked) {
		untold.closed = TOLD;
		track(sk, &untold);
	}
}

/*
 * A connection has been accepted, and that was told; if it was reset before, now is known by whom. A
 * reset that comes meanwhile sees no owner, or a whole one: its pid is written last.
 */
static __always_inline void adopt(struct sock *sk, struct tracked *accepted)
{
	struct tracked *tracked = tracked_of(sk);
	struct event *event = &accepted->event;
	u32 pid = event->owner.pid;

	become_connection(event);
	if (!tracked) {
		keep_connection(sk, accepted, 0);
		return;
	}
	event->owner.pid = 0;
	tracked->event = *event;
	asm volatile("" ::: "memory");
	tracked->event.owner.pid = event->owner.pid = pid;
	if (!tracked->closed || tracked->closed == TOLD)
		return;
	event->error = READ(sk, sk_err);
	submit_close((void *)sk, event, tracked->closed, tracked->event.timestamp, 0);
	tracked->closed = TOLD;
}

/*
 * The last of a socket. Its end is told here if it was reset before it was accepted and never was,
 * or while it was (see adopt), or if the kernel let no program see it: then it was not long ago.
 */
static __always_inline int forget_connection(struct sock *sk, int behind)
{
	struct tracked *tracked;
	struct event *event;
	u16 dport;
	u32 pid;

	if (seen_in_front(sk, 0xff, behind))
		return 0;
	tracked = tracked_of(sk);
	if (!tracked)
		return 0;
	event = &tracked->event;
	pid = event->owner.pid;
#if defined(FILTER_PID) || defined(FILTER_UID)
	if (!pid)
		pid = UNWANTED;
#endif
	if (event->type == CONNECT) {
		if (event->outcome != UNANSWERED)
			count_lost(LOST_ANSWERS);
	} else if (tracked->closed != TOLD && pid != UNWANTED) {
		if (!pid)
			event->type = UNKNOWN;
		dport = event->dport;
		read_ends(event, sk, 0);
		if (tracked->closed)
			event->dport = dport;
		if (port_wanted(event->sport) || port_wanted(event->dport))
			submit_close((void *)sk, event, tracked->closed, event->timestamp, 0);
	}
	untrack(sk);
	return 0;
}

struct destruction { struct sock *sk; };
struct destruction_args { u64 common; struct sock *sk; };

#ifdef PREEMPTIBLE
int tp__tcp__tcp_destroy_sock(struct destruction_args *ctx)
#else
int raw_tp__tcp_destroy_sock(struct destruction *ctx)
#endif
{
	return forget_connection(ctx->sk, 0);
}

int raw_tp__tcp_destroy_sock__behind(struct destruction *ctx)
{
	return forget_connection(ctx->sk, 1);
}
#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/* Whose each connection is, and its end: one event, by whichever end of it is here. */
#ifndef TRACE_CLOSE
#define own(sk, owner, since)
#define disown(sk)
#define adopt(sk, event)
#else
#define UNWANTED 0xffffffff	/* the pid of owners whose events are not asked for */
#define TOLD 0xff		/* `closed` of a connection whose end was told */

#ifdef TRACE_CONNECT
static __always_inline int established_unseen(struct sock *sk, struct owner *owner);
#else
#define established_unseen(sk, owner) 0
#endif

/* A connection is made, by `owner`, or by a listener whose process has yet to accept it. */
static __always_inline void own(struct sock *sk, struct owner *owner, u64 since)
{
	struct connection connection = { .since = since };

	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return; /* an MPTCP socket is never closed: its subflows are */
	if (owner)
		connection.owner = *owner;
	if (connections.update(&sk, &connection) && owner && owner->pid != UNWANTED)
		count_lost(LOST_CONNECTIONS);
}

/* A listener's: nobody's until it is accepted. */
static __always_inline void create_connection(struct sock *sk, int behind)
{
	if (!behind || !connections.lookup(&sk))
		own(sk, NULL, 0);
}

/* Its close is not asked for. */
static __always_inline void disown(struct sock *sk)
{
	struct owner owner = { .pid = UNWANTED };

	own(sk, &owner, 0);
}

/* Bytes that were written and wait for their turn; the FIN comes after them. */
static __always_inline u32 unsent(struct sock *sk)
{
	struct tcp_sock *tcp = (void *)sk;

	return READ(tcp, write_seq) - READ(tcp, snd_nxt);
}

static __always_inline void submit_close(struct sock *sk, struct event *event, int old, u64 since)
{
	struct tcp_sock *tcp = (void *)sk;

	event->timestamp = bpf_ktime_get_ns();
	event->duration = since ? event->timestamp - since : 0;
	event->sent += READ(tcp, bytes_sent) - READ(tcp, bytes_retrans);
	event->received = READ(tcp, bytes_received);
	if (old == CLOSE_WAIT && event->received)
		event->received--; /* the peer's FIN counts as a byte */
	submit(event);
}

/* Who holds the socket's lock is who calls; else this is a softirq in somebody's time. */
static __always_inline int is_callers(struct sock *sk)
{
	return READ(sk, sk_lock.owned) != 0;
}

static __always_inline void end_connection(struct sock *sk, int old, int new)
{
	struct event event = { .type = CLOSE, .fd = -1, .accept_fd = -1 };
	struct connection *connection = connections.lookup(&sk), told = { .closed = TOLD };
	u64 cgroup, since = 0;

	if (old == SYN_RECV && new == CLOSED) {
		connections.delete(&sk); /* never was established */
		return;
	}
	if (connection) {
		if (connection->closed) {
			if (connection->closed == TOLD)
				connections.delete(&sk);
			return; /* by the program in front, or by accept() meanwhile */
		}
		/* accept() itself may hold the lock when the reset comes; what is closed has no error yet */
		if (!connection->owner.pid && new == CLOSED && (!is_callers(sk) || READ(sk, sk_err))) {
			connection->closed = old; /* reset before it was accepted: accept() or the end tells */
			connection->dport = NTOHS(READ(sk, __sk_common.skc_dport));
			return;
		}
		event.owner = connection->owner;
		since = connection->since;
		connection->closed = TOLD;
		if (event.owner.pid == UNWANTED)
			return;
	} else if (READ(sk, sk_protocol) != IPPROTO_TCP) {
		return;
	} else if (established_unseen(sk, &event.owner)) { /* nor was its answer */
	} else if (is_callers(sk)) { /* older than the trace */
		if (!current_wanted(&cgroup))
			return;
		read_owner(&event.owner, cgroup);
	}
	if (!event.owner.pid) {
#if defined(FILTER_PID) || defined(FILTER_UID)
		return;
#endif
		event.type = UNKNOWN;
	}
	read_socket(&event, sk);
	event.sport = local_port(sk);
	if (!port_wanted(event.sport) && !port_wanted(event.dport))
		return;
	if (new == CLOSED)
		event.error = READ(sk, sk_err);
	else
		event.sent = unsent(sk);
	submit_close(sk, &event, old, since);
	if (!connection)
		connections.update(&sk, &told);
}

/*
 * A connection has been accepted; if it was reset before, now is known by whom. A reset that comes
 * meanwhile sees no owner, or a whole one: its pid is written last.
 */
static __always_inline void adopt(struct sock *sk, struct event *event)
{
	struct connection *connection = connections.lookup(&sk);
	struct owner owner = event->owner;

	if (!connection) {
		own(sk, &event->owner, event->timestamp);
		return;
	}
	owner.pid = 0;
	connection->since = event->timestamp;
	connection->owner = owner;
	asm volatile("" ::: "memory");
	connection->owner.pid = event->owner.pid;
	if (!connection->closed || connection->closed == TOLD)
		return;
	event->type = CLOSE;
	event->outcome = NONE;
	event->accept_fd = event->fd = -1;
	event->error = READ(sk, sk_err);
	submit_close(sk, event, connection->closed, connection->since);
	connection->closed = TOLD;
}

/*
 * The last of a socket. Its end is told here if it was reset before it was accepted and never was,
 * or while it was (see adopt), or if the kernel let no program see it: then it was not long ago.
 */
static __always_inline int forget_connection(struct sock *sk)
{
	struct event event = { .type = UNKNOWN, .fd = -1, .accept_fd = -1 };
	struct connection *connection = connections.lookup(&sk);
	u32 pid;

	if (!connection)
		return 0;
	pid = connection->owner.pid;
#if defined(FILTER_PID) || defined(FILTER_UID)
	if (!pid)
		pid = UNWANTED;
#endif
	if (connection->closed != TOLD && pid != UNWANTED) {
		if (pid) {
			event.type = CLOSE;
			event.owner = connection->owner;
		}
		read_socket(&event, sk);
		event.sport = local_port(sk);
		if (connection->closed)
			event.dport = connection->dport;
		if (port_wanted(event.sport) || port_wanted(event.dport))
			submit_close(sk, &event, connection->closed, connection->since);
	}
	connections.delete(&sk);
	return 0;
}

struct destruction { struct sock *sk; };

int raw_tp__tcp_destroy_sock(struct destruction *ctx)
{
	return forget_connection(ctx->sk);
}

int raw_tp__tcp_destroy_sock__behind(struct destruction *ctx)
{
	return forget_connection(ctx->sk);
}
#endif

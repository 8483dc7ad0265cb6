/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whose each connection is, and its end: one close for each end that is on this host.
 *
 * A close is reported when the owner closes the socket (its last descriptor), or when the kernel ends the
 * connection, whichever comes first: both sides have sent a FIN that was acknowledged, one has reset it, or
 * nobody answers any more. After shutdown(SHUT_WR) it goes on, in the other direction.
 *
 * The owner is who connected or accepted, whatever the current task is. Of sockets that have no entry in
 * `sockets` (older than the trace, or not selected by the filters) only the socket's own cgroup and user are known.
 *
 * state	connected or accepted	closed, or ended by the kernel	destroyed
 * none		ATTEMPT; OPEN		see end_untracked()		none
 * ATTEMPT	OPEN, or none		REPORTED			none; an answer was missed
 * OPEN		-			REPORTED			none, reported: its end was missed
 * UNCLAIMED	none, reported		-				none, reported: nobody accepted it
 * REPORTED	ATTEMPT (used again)	-				none
 *
 * Where an attempt begins while another one of the socket is tracked, the end of that one was missed.
 *
 * A socket's changes of state come one after the other, under its lock; accept() may return meanwhile, on
 * another processor. It never changes an entry: the first of the two makes it, complete.
 */
static __always_inline void finish_attempt(struct sock *sk, struct event *event, u8 outcome, u32 error, int time_unknown);

/*
 * The sockets that listeners of this host made last, by a hash of their address, until they are accepted or end: one of
 * them that has no entry is about to be returned by accept(), or was by one that is not seen.
 */
BPF_ARRAY(created, u64, CLOSES ? 65536 : 1);
/*
 * Sockets of which no close is to be reported, although their own cgroup and user would say otherwise: a process
 * that the filters exclude uses them. They take no room from others; one that is evicted costs a line too many.
 */
BPF_TABLE("lru_hash", u64, u8, ignored, CLOSES ? 32768 : 1);

static __always_inline u64 *created_slot(struct sock *sk)
{
	u32 slot = (u64)sk * 0x9e3779b97f4a7c15 >> 48;

	return created.lookup(&slot);
}

static __always_inline void note_created(struct sock *sk)
{
	u64 *slot = created_slot(sk);

	if (slot)
		*slot = (u64)sk;
}

static __always_inline int forget_created(struct sock *sk)
{
	u64 *slot = created_slot(sk);

	if (!slot || *slot != (u64)sk)
		return 0;
	*slot = 0;
	return 1;
}

/* Whether the filters select a connection's process, where only the socket's user is known. */
static __always_inline int user_wanted(u32 uid)
{
	return FILTER_PID == ANY && (FILTER_UID == ANY || uid == FILTER_UID);
}

static __always_inline void ignore(struct sock *sk)
{
	u64 key = (u64)sk;
	u8 yes = 1;

	ignored.update(&key, &yes);
}

/* A process that the filters exclude connected or accepted. */
static __always_inline void ignore_connection(struct sock *sk)
{
	u64 cgroup;

	if (sk && user_wanted(READ(sk, sk_uid.val)) && socket_wanted(sk, &cgroup))
		ignore(sk);
}

/* The same, of accept(): it may have ended before. */
static __always_inline void ignore_accepted(struct sock *sk)
{
	struct tracked *tracked = sk ? tracked_of(sk) : NULL;

	ignore_connection(sk);
	if (tracked && tracked->state == UNCLAIMED)
		untrack(sk);
}

/* It connected to another port than FILTER_PORT, but its own port, chosen since, is that. */
static __always_inline void ignore_local_port(struct sock *sk)
{
	if (FILTER_PORT != ANY && local_port(sk) == FILTER_PORT)
		ignore(sk);
}

/* Of an event that was reported: the next of its socket will be the close. */
static __always_inline void become_connection(struct event *event)
{
	struct tracked *tracked = (void *)event; /* whose first member it is */

	tracked->state = OPEN;
	event->type = CLOSE;
	event->outcome = NONE;
	event->latency = event->error = event->retransmits = 0;
	event->waited = event->update = 0;
	event->fd = event->accept_fd = -1;
}

/* Bytes that were written and wait for their turn. */
static __always_inline u32 unsent(struct tcp_sock *tcp, int fin_queued)
{
	u32 bytes = READ(tcp, write_seq) - READ(tcp, snd_nxt);

	return fin_queued && bytes ? bytes - 1 : bytes; /* the FIN comes last, and counts as one */
}

/* What was transferred, and why it ended. An MPTCP connection counts for all its subflows, since 6.5 (38967f424b5b). */
static __always_inline void read_end(struct event *event, struct sock *sk, int old, int new)
{
	struct tcp_sock *tcp = (void *)sk;

	event->sent = READ(tcp, bytes_sent) - READ(tcp, bytes_retrans);
	event->received = READ(tcp, bytes_received);
	if (READ(sk, __sk_common.skc_flags) >> KERNEL_SOCK_DONE & 1 && event->received)
		event->received--; /* the peer's FIN counts as a byte */
	if (new == CLOSED)
		event->error = READ(sk, sk_err);
	else
		event->sent += unsent(tcp, old == new);
#ifdef HAVE_mptcp_sock_bytes_sent
	struct mptcp_sock *mptcp = mptcp_of(sk);

	if (mptcp) {
		event->sent = READ(mptcp, bytes_sent);
		event->received = READ(mptcp, bytes_received);
	}
#endif
}

static __always_inline void submit_close(struct event *event)
{
	u64 since = event->timestamp;

	event->timestamp = bpf_ktime_get_ns();
	event->duration = since ? event->timestamp - since : 0;
	if (event->half_closed)
		event->half_closed = event->timestamp - event->half_closed;
	submit(event);
}

/* Whether the owner is closing the socket; else it calls shutdown(). */
static __always_inline int is_released(struct socket *socket)
{
	struct file *file = (void *)READ(socket, file);

	if (!file)
		return 1;
#ifdef HAVE_file_f_ref /* 6.13: 90ee6ed776c0; 0 is one reference */
	return (s64)READ(file, f_ref.refcnt.counter) < 0;
#else
	return !READ(file, f_count.counter);
#endif
}

/*
 * The end of a connection that has no entry. If nobody has accepted it yet, accept() may say whose it is, or
 * that nobody ever did is known when it is destroyed. Returns false if it has an entry by now.
 */
static __always_inline int end_untracked(struct sock *sk, int accepted, int old, int new)
{
	struct tracked ended = { .state = REPORTED, .event = { .type = CLOSE, .fd = -1, .accept_fd = -1 } };
	struct event *event = &ended.event;
	u64 key = (u64)sk;
	int failed, was_created = forget_created(sk);

	if (ignored.lookup(&key) || READ(sk, sk_protocol) != IPPROTO_TCP || is_later_subflow(sk))
		return 1;
	if (!accepted || was_created) {
		ended.state = UNCLAIMED;
		event->type = UNKNOWN;
		event->direction = INCOMING;
	}
	event->owner.uid = READ(sk, sk_uid.val);
	if ((ended.state == REPORTED && !user_wanted(event->owner.uid)) || !socket_wanted(sk, &event->owner.cgroup))
		return 1;
	read_ends(event, sk);
	if (!port_wanted(event->sport) && !port_wanted(event->dport))
		return 1;
	read_end(event, sk, old, new);
	event->timestamp = ended.state == UNCLAIMED ? bpf_ktime_get_ns() : 0;
	failed = track_new(sk, &ended);
	if (failed == -EEXIST)
		return 0;
	if (failed)
		count_lost(LOST_CONNECTIONS);
	else if (ended.state == REPORTED)
		submit_close(event);
	return 1;
}

static __always_inline void end_tracked(struct tracked *tracked, struct sock *sk, int old, int new)
{
	struct event *event = &tracked->event;

	switch (tracked->state) {
	case ATTEMPT: /* no program saw the answer */
		finish_attempt(sk, event, DONE, 0, 1);
		become_connection(event);
		event->timestamp = 0;
		break;
	case OPEN:
		break;
	default:
		return;
	}
	tracked->state = REPORTED;
	if (!event->sport)
		read_ends(event, sk);
	read_end(event, sk, old, new);
	submit_close(event);
}

static __always_inline int is_connection(int state)
{
	return 1 << state & (1 << ESTABLISHED | 1 << SYN_RECV | 1 << FIN_WAIT1 | 1 << FIN_WAIT2 |
			     1 << CLOSE_WAIT | 1 << LAST_ACK | 1 << CLOSING);
}

static __always_inline void change_connection(struct sock *sk, int old, int new)
{
	struct socket *socket = (void *)READ(sk, sk_socket);
	int established = old == ESTABLISHED || old == CLOSE_WAIT || old == SYN_RECV;
	struct tracked *tracked;

	if (!socket && !established)
		return; /* closed by its owner before */
	tracked = tracked_of(sk);
	if (new != CLOSED && !is_released(socket)) {
		if (tracked && tracked->state == OPEN && new == FIN_WAIT1 && !tracked->event.half_closed)
			tracked->event.half_closed = bpf_ktime_get_ns();
		return;
	}
	/*
	 * Both sides connected at once, and it was never established. But what a listener made with Fast Open is in
	 * accept()'s queue before the client's last ACK has come.
	 */
	if (!tracked && socket && old == SYN_RECV && new == CLOSED)
		return;
	if (!tracked) {
		if (end_untracked(sk, socket != NULL, old, new))
			return;
		tracked = tracked_of(sk);
	}
	if (tracked)
		end_tracked(tracked, sk, old, new);
}

/* It ended before it was accepted; now is known by whom. */
static __always_inline void claim(struct sock *sk, struct tracked *unclaimed, struct event *event)
{
	event->sent = unclaimed->event.sent;
	event->received = unclaimed->event.received;
	event->error = unclaimed->event.error;
	event->sport = unclaimed->event.sport; /* disconnecting forgets them */
	event->dport = unclaimed->event.dport;
	if (untrack(sk))
		submit_close(event);
}

/* A connection has been accepted, and that was reported. */
static __always_inline void set_owner(struct sock *sk, struct tracked *accepted)
{
	struct tracked *tracked;
	int failed;

	if (!sk)
		return;
	forget_created(sk);
	become_connection(&accepted->event);
	failed = track_new(sk, accepted);
	if (failed == -EEXIST) {
		tracked = tracked_of(sk);
		if (tracked && tracked->state == UNCLAIMED)
			claim(sk, tracked, &accepted->event);
		else /* an earlier socket's at this address, whose last no program saw */
			track(sk, accepted);
	} else if (failed) {
		count_lost(LOST_CONNECTIONS);
	}
}

/* It ended, and nobody will accept it any more. */
static __always_inline void give_up_claim(struct sock *sk, struct tracked *unclaimed)
{
	struct event event = unclaimed->event;

	if (untrack(sk) && user_wanted(event.owner.uid))
		submit(&event);
}

/* The last of a socket. Its end is reported here if the kernel skipped the programs for it: then it was not long ago. */
static __always_inline int forget_connection(struct sock *sk, int backup)
{
	struct tracked *tracked;
	u64 key = (u64)sk;

	if (handled_by_primary(sk, 0xff, backup))
		return 0;
	tracked = tracked_of(sk);
	if (!tracked) {
		ignored.delete(&key);
		/* it ended before the backup was attached; the peer's port is forgotten by now: tcp_disconnect() */
		if (forget_created(sk))
			count_lost(LOST_ENDS);
		return 0;
	}
	switch (tracked->state) {
	case ATTEMPT:
		count_lost(LOST_ANSWERS);
		break;
	case OPEN:
		end_tracked(tracked, sk, CLOSED, CLOSED);
		break;
	case UNCLAIMED:
		give_up_claim(sk, tracked);
		return 0;
	}
	untrack(sk);
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/* Attempts to connect, from the SYN, or the call that never got so far, to their outcome. */
/*
 * CLOSE -> SYN_SENT, in the caller's context; the local port is not chosen yet.
 * What there is no room for is counted by the primary, also if its backup finds room.
 */
static __always_inline void begin_attempt(struct sock *sk, int backup)
{
	struct tracked tracked = { .event = { .type = CONNECT, .direction = OUTGOING, .fd = -1, .accept_fd = -1 } };
	struct event *event = &tracked.event;
	u64 cgroup;
	int failed;

	if ((backup && attempt_of(sk)) || READ(sk, sk_protocol) != IPPROTO_TCP || is_later_subflow(sk))
		return;
	if (!current_wanted(&cgroup)) {
		if (CLOSES)
			ignore_connection(sk);
		return;
	}
	read_socket(event, &sk->__sk_common);
	if (!port_wanted(event->dport))
		return;
	read_owner_of(&event->owner, cgroup);
	if (TRACE_DESCRIPTORS) {
		struct call call = current_call();

		if (call.number == NR_CONNECT || call.number == NR_SENDTO || call.number == NR_SENDMSG)
			event->fd = call.fd;
	}
	expect_signals(event);
	event->timestamp = bpf_ktime_get_ns();
	failed = track_new(sk, &tracked);
	if (failed == -EEXIST) {
		if (attempt_of(sk))
			count_lost(LOST_ANSWERS); /* that of an earlier socket at this address */
		failed = track(sk, &tracked);
	}
	if (failed && !backup)
		count_lost(CLOSES ? LOST_CONNECTIONS : LOST_ATTEMPTS);
}

/*
 * When the first SYN was sent: with Fast Open long after connect(), by the first write. 0 if none was: then a
 * connection was restored from a checkpoint (TCP_REPAIR).
 */
static __always_inline u64 syn_sent(struct sock *sk, struct event *event)
{
	u64 sent;

	if (event->retransmits)
		return event->timestamp; /* as the first repetition left it */
	sent = READ((struct tcp_sock *)sk, tcp_wstamp_ns);
	if (sent > event->timestamp)
		return sent;
	return BITS(sk, BIT_OFFSET_tcp_sock_repair, 1) ? 0 : event->timestamp;
}

/* The errno of the last ICMP error that is kept for the caller, 0 if there is none: ip_icmp_error(). */
static __always_inline u32 queued_error(struct sock *sk)
{
	struct sk_buff *last = (void *)READ(sk, sk_error_queue.prev);
	struct sock_exterr_skb *kept = (void *)last->cb;

	if ((void *)last == &sk->sk_error_queue || READ(kept, ee.ee_origin) != SO_EE_ORIGIN_ICMP)
		return 0;
	return READ(kept, ee.ee_errno);
}

/*
 * An ICMP error that comes while the caller holds the socket's lock ends no attempt: such as that of this host's
 * own firewall, in connect(). Nor does a route that is lost. The caller learns of it when it asks, and closes.
 */
static __always_inline u32 unreported_error(struct sock *sk, struct event *event)
{
	u32 error = event ? event->error : 0;

	if (!error)
		error = READ(sk, sk_err_soft);
	if (!HAVE_tracepoint_inet_sk_error_report && !error)
		error = queued_error(sk);
	if (!error && !READ(sk, sk_dst_cache))
		error = ENETUNREACH; /* none was found when the SYN was to be sent again: inet_sk_rebuild_header() */
	return error;
}

/* When an ICMP error comes, which IPv4 keeps for the caller, ending the attempt or not. */
int raw_tp__inet_sk_error_report(struct { u64 sk; } *ctx)
{
	struct sock *sk = (void *)ctx->sk;
	struct event *event;

	if (!CONNECTS || !HAVE_tracepoint_inet_sk_error_report || READ(sk, __sk_common.skc_state) != SYN_SENT)
		return 0;
	event = attempt_of(sk);
	if (!event)
		return 0;
	event->error = queued_error(sk);
	if (event->error)
		event->latency = bpf_ktime_get_ns() - syn_sent(sk, event);
	return 0;
}

/* How long the answer took, 0 if there was none or it is unknown. */
static __always_inline u64 latency_of(struct sock *sk, struct event *event, u8 outcome, u64 elapsed)
{
	if (outcome == DONE)
		return elapsed;
	if (event->latency)
		return event->latency;
	if (!READ(sk, sk_err))
		return 0;
	/* the error of a router may have been kept until the kernel gave up: tcp_write_err() */
	return outcome == REFUSED || (outcome == UNREACHABLE && !READ(sk, sk_err_soft)) ? elapsed : 0;
}

/* `time_unknown`: the answer came earlier, and its time was not observed. */
static __always_inline void finish_attempt(struct sock *sk, struct event *event, u8 outcome, u32 error, int time_unknown)
{
	u64 now = bpf_ktime_get_ns(), begun = syn_sent(sk, event);
	u64 latency = time_unknown ? 0 : latency_of(sk, event, outcome, now - begun);

	if (!begun) {
		event->timestamp = now;
		return; /* no attempt at all */
	}
	if (FAILURE_ONLY && outcome == DONE && event->outcome != UNANSWERED)
		return;
	if (MIN_LATENCY && time_unknown)
		count_lost(LOST_ANSWERS);
	if (MIN_LATENCY && (time_unknown || (latency ? latency : now - begun) < MIN_LATENCY))
		return;
	event->update = event->outcome == UNANSWERED;
	event->waited = time_unknown ? 0 : now - begun;
	event->timestamp = now;
	event->latency = latency;
	event->outcome = outcome;
	event->error = error;
	event->sport = local_port(sk);
	submit_attempt(sk, event);
}

/*
 * No port, no memory, …: the call that was to send a SYN takes SYN_SENT back. It has not said yet that the socket
 * is connecting, which distinguishes this from a close.
 */
static __always_inline int failed_in_call(struct sock *sk)
{
	struct socket *socket = (void *)READ(sk, sk_socket);

	return socket && (u32)READ(socket, state) == SS_UNCONNECTED;
}

/* Why, where no tracepoint says what the call returned; 0 if unknown. A chosen port is known by now. */
static __always_inline u32 failure_in_call(struct sock *sk)
{
	if (!READ((struct inet_sock *)sk, inet_sport) || USER_LOCKS(sk) & SOCK_BINDPORT_LOCK)
		return EADDRNOTAVAIL;
	return READ(sk, sk_err_soft);
}

/* Errors that no connect() returns before it has sent a SYN: they end an attempt, or are an earlier one's. */
static __always_inline int ends_attempts(u32 error)
{
	return error == ECONNREFUSED || error == ETIMEDOUT || error == ECONNABORTED || error == ECONNRESET;
}

/* connect() has yet to return an error that could be a new attempt's. */
static __always_inline void note_failure(struct sock *sk, u32 error)
{
	struct socket *socket = (void *)READ(sk, sk_socket);
	u64 key = (u64)sk, inode;

	if (!socket || !error || ends_attempts(error))
		return;
	inode = inode_number((void *)READ(socket, file));
	if (inode)
		failed.update(&key, &inode);
}

/* The attempt is over, and was reported; the connection is tracked on, if there is one. */
static __always_inline void end_tracking(struct sock *sk, struct event *event, int connected)
{
	if (CLOSES && connected)
		become_connection(event);
	else
		untrack(sk);
}

static __always_inline void end_attempt(struct sock *sk, int new)
{
	struct event *event = attempt_of(sk);
	u32 error = 0;
	u8 outcome = DONE;

	if (new == CLOSED) {
		error = READ(sk, sk_err);
		note_failure(sk, error);
		if (error) {
			outcome = outcome_of(error);
		} else if (failed_in_call(sk)) {
			if (current_call().number == NR_CONNECT)
				return; /* which will return why */
			error = failure_in_call(sk);
			outcome = FAILED;
		} else {
			error = unreported_error(sk, event);
			outcome = outcome_of(error);
		}
	}
	if (!event) {
		if (CLOSES && new != CLOSED)
			ignore_local_port(sk);
		return;
	}
	finish_attempt(sk, event, outcome, error, 0);
	end_tracking(sk, event, new == ESTABLISHED);
}

/* What has become of an attempt whose end the kernel may have skipped the programs for. */
static __always_inline int recheck_attempt(struct sock *sk)
{
	struct event *event = attempt_of(sk);
	u8 state = READ(sk, __sk_common.skc_state);
	u32 error = READ(sk, sk_err);

	if (!event || state == SYN_SENT || state == SYN_RECV)
		return 0;
	if (NTOHS(READ(sk, __sk_common.skc_dport)) != event->dport || (state == CLOSED && !error)) {
		count_lost(LOST_ANSWERS); /* another socket by now, or its caller has got the error */
		untrack(sk);
		return 0;
	}
	finish_attempt(sk, event, state == CLOSED ? outcome_of(error) : DONE, error, 1);
	end_tracking(sk, event, state != CLOSED);
	return 0;
}

/*
 * Another thread may have written meanwhile where connect() read the address. But where no route was found, the
 * kernel has left in the socket what it looked for: tcp_v4_connect(), and, the port excepted, tcp_v6_connect().
 */
static __always_inline void read_route(struct asked *asked, struct sock *sk)
{
	struct flowi4 *route = (void *)&((struct inet_sock *)sk)->cork.fl;
	struct halves v6;
	u16 port;

	if (asked->family == AF_INET6) {
		bpf_probe_read_kernel(&v6, sizeof(v6), &sk->__sk_common.skc_v6_daddr);
		if (v6.half[0] || v6.half[1])
			*(struct halves *)asked->v6 = v6;
		return;
	}
	bpf_probe_read_kernel(&port, sizeof(port), route->uli);
	if (!port)
		return;
	asked->port = port;
	asked->v4 = READ(route, daddr);
}

/* connect() failed and no SYN was ever sent: all there is, is what it was called with. */
static __always_inline void failed_call(struct sock *sk, struct call *call, u32 error)
{
	struct event event = { .type = CONNECT, .direction = OUTGOING, .outcome = FAILED, .error = error, .fd = call->fd, .accept_fd = -1 };
	struct asked asked = {};
	u64 cgroup;

	if (!current_wanted(&cgroup))
		return;
	read_ends(&event, sk);
	read_asked(&asked, call->address);
	if (!asked.family && error != EFAULT)
		return; /* AF_UNSPEC: asked to disconnect */
	if (error == ENETUNREACH || error == EHOSTUNREACH)
		read_route(&asked, sk);
	event.dport = NTOHS(asked.port);
	if (!port_wanted(event.dport))
		return;
	__builtin_memset(event.daddr, 0, 16);
	event.version = set_address(event.daddr, asked.family, &asked.v4, asked.v6);
	if (event.version == 6 && is_link_local(event.daddr) && asked.zone)
		read_device(event.zone, (void *)READ(sk, __sk_common.skc_net.net), asked.zone);
	read_owner_of(&event.owner, cgroup);
	event.timestamp = bpf_ktime_get_ns();
	submit(&event);
}

static __always_inline int left_connect(s64 ret)
{
	struct socket socket;
	struct event *event;
	struct call call;
	u32 error = -ret;
	u64 key, *inode;

	if (ret >= 0 || ret == -EINPROGRESS || ret <= -ERESTARTSYS)
		return 0;
	call = current_call();
	if (!current_socket(call.fd, &socket) || !is_tcp(socket.sk) || (u32)socket.state != SS_UNCONNECTED)
		return 0; /* connecting still, or connected */
	event = attempt_of(socket.sk);
	if (event) {
		/* if it only comes as an answer, no program saw that */
		finish_attempt(socket.sk, event, ends_attempts(error) ? outcome_of(error) : FAILED, error, 0);
		untrack(socket.sk);
		return 0;
	}
	key = (u64)socket.sk;
	inode = failed.lookup(&key);
	if (inode && *inode == inode_number((void *)socket.file)) {
		failed.delete(&key); /* reported when it happened, in this call or before it */
		return 0;
	}
	if (ends_attempts(error))
		return 0;
	if (!MIN_LATENCY)
		failed_call(socket.sk, &call, error);
	return 0;
}

/*
 * Nothing has answered a SYN in time, and it is repeated, if it can be sent. An ICMP error that came is an answer,
 * of which the caller does not know yet.
 */
static __always_inline void repeat_syn(struct sock *sk, int before)
{
	struct event *event, copy;

	if (READ(sk, __sk_common.skc_state) != SYN_SENT)
		return;
	event = attempt_of(sk);
	if (!event)
		return;
	if (before)
		event->timestamp = syn_sent(sk, event);
	event->retransmits++;
	if (COUNT_EVENTS || LATENCY || event->outcome == UNANSWERED || unreported_error(sk, event))
		return;
	copy = *event;
	copy.outcome = UNANSWERED;
	copy.timestamp = bpf_ktime_get_ns();
	copy.waited = copy.timestamp - event->timestamp;
	copy.sport = local_port(sk);
	/* Where there is no room this is not lost: it is reported with the next SYN, or at the attempt's end. */
	if (!report(sk, &copy))
		event->outcome = UNANSWERED;
}

/* tcp_retransmit_timer() calls tcp_enter_loss() first. */
int raw_tp__tcp_cong_state_set(struct { u64 sk, state; } *ctx)
{
	if (CONNECTS && HAVE_tracepoint_tcp_cong_state_set && (u8)ctx->state == TCP_CA_LOSS)
		repeat_syn((void *)ctx->sk, 1);
	return 0;
}

/*
 * Before that one came in 5.19 (15fcdf6ae116 "tcp: Add tracepoint for tcp_set_ca_state"). This is called after a SYN
 * was sent, so not for those that this host drops.
 */
int raw_tp__tcp_retransmit_skb(struct { u64 sk; } *ctx)
{
	if (CONNECTS && !HAVE_tracepoint_tcp_cong_state_set)
		repeat_syn((void *)ctx->sk, 0);
	return 0;
}

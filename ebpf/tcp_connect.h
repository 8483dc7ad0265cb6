/* SPDX-License-Identifier: GPL-2.0-only */
/* Attempts to connect, from the SYN, or the call that never got so far, to their outcome. */
#ifdef TRACE_CONNECT
/*
 * CLOSE -> SYN_SENT, in the caller's context; the local port is not chosen yet.
 * What there is no room for is counted by the program in front, also if the one behind finds room.
 */
static __always_inline void begin_attempt(struct sock *sk, int behind, int typed)
{
	struct tracked tracked = { .event = { .type = CONNECT, .fd = -1, .accept_fd = -1 } };
	struct event *event = &tracked.event;
	u64 cgroup;

	if (READ_IF(typed, sk, sk_protocol) != IPPROTO_TCP)
		return;
	if (!current_wanted(&cgroup)) {
		disown(sk, typed);
		return;
	}
	read_socket(event, sk, typed);
	if (!port_wanted(event->dport)) {
		disown(sk, typed);
		return;
	}
	read_owner(&event->owner, cgroup);
#ifdef TRACE_DESCRIPTORS
	struct call call = current_call();

	if (call.number == NR_CONNECT || call.number == NR_SENDTO || call.number == NR_SENDMSG)
		event->fd = call.fd;
#endif
	event->timestamp = bpf_ktime_get_ns();
	if (track(sk, &tracked) && !behind)
		count_lost(LOST_ATTEMPTS);
}

/* `late` if the answer came earlier, nobody knows when. */
static __always_inline void finish_attempt(struct sock *sk, struct event *event, u8 outcome, u32 error, int late, int typed)
{
	u64 now = bpf_ktime_get_ns(), elapsed = now - event->timestamp;

	if (event->outcome == UNANSWERED) {
		event->timestamp = now;
		return; /* told when the SYN was repeated */
	}
#ifdef FAILURE_ONLY
	if (outcome == DONE)
		return;
#endif
#ifdef MIN_LATENCY
	if (late)
		count_lost(LOST_ANSWERS);
	if (late || elapsed < MIN_LATENCY)
		return;
#endif
	event->timestamp = now;
	event->latency = !late && (outcome == DONE || outcome == REFUSED) ? elapsed : 0;
	event->outcome = outcome;
	event->error = error;
	event->sport = local_port(sk, typed);
	submit(event);
}

/*
 * No port, no memory, …: connect() takes SYN_SENT back, and will return why. It has not said yet
 * that the socket is connecting, which tells this from a close.
 */
static __always_inline int failed_in_call(struct socket *socket)
{
	return (u32)READ(socket, state) == SS_UNCONNECTED && current_call().number == NR_CONNECT;
}

/* Says whether the attempt is over; if not, connect() will return why it is. */
static __always_inline int note_failure(struct sock *sk, u32 error)
{
	struct socket *socket = (void *)READ(sk, sk_socket);
	u64 key = (u64)sk, inode;

	if (!socket)
		return 1;
	if (!error && failed_in_call(socket))
		return 0;
	inode = inode_number((void *)READ(socket, file));
	if (inode)
		failed.update(&key, &inode);
	return 1;
}

/* The attempt is over, and its event told; what is kept is the connection, if there is one. */
static __always_inline void end_tracking(struct sock *sk, struct event *event, int connected)
{
#ifdef TRACE_CLOSE
	if (connected) {
		become_connection(event);
		return;
	}
#endif
	untrack(sk);
}

static __always_inline void end_attempt(struct sock *sk, int new, int typed)
{
	struct event *event = attempt_of(sk);
	u32 error = 0;

	if (new == CLOSED) {
		error = READ_IF(typed, sk, sk_err);
		if (!note_failure(sk, error))
			return;
	}
	if (!event)
		return;
	finish_attempt(sk, event, new == CLOSED ? outcome_of(error) : DONE, error, 0, typed);
	end_tracking(sk, event, new == ESTABLISHED);
}

/* What has become of an attempt: the kernel may have let no program see it. */
static __always_inline void ask_again(struct sock *sk)
{
	struct event *event = attempt_of(sk);
	u8 state = READ(sk, __sk_common.skc_state);
	u32 error = READ(sk, sk_err);

	if (!event || state == SYN_SENT || state == SYN_RECV)
		return;
	if (NTOHS(READ(sk, __sk_common.skc_dport)) != event->dport || (state == CLOSED && !error)) {
		if (event->outcome != UNANSWERED)
			count_lost(LOST_ANSWERS); /* another socket by now, or its caller was told */
		untrack(sk);
		return;
	}
	finish_attempt(sk, event, state == CLOSED ? outcome_of(error) : DONE, error, 1, 0);
	end_tracking(sk, event, state != CLOSED);
}

/* connect() failed and no SYN was ever sent: all there is, is what it was called with. */
static __always_inline void failed_call(struct sock *sk, struct call *call, u32 error)
{
	struct event event = { .type = CONNECT, .outcome = FAILED, .error = error, .fd = call->fd, .accept_fd = -1 };
	struct { u16 family, port; u32 v4; } address = {}; /* struct sockaddr_in's beginning */
	u64 cgroup;

	if (!current_wanted(&cgroup))
		return;
	read_ends(&event, sk, 0);
	bpf_probe_read_user(&address, sizeof(address), (void *)call->address);
	if (!address.family && error != EFAULT)
		return; /* AF_UNSPEC: asked to disconnect */
	event.dport = NTOHS(address.port);
	if (!port_wanted(event.dport))
		return;
	__builtin_memset(event.daddr, 0, 16);
	if (address.family == AF_INET6)
		bpf_probe_read_user(event.daddr, 16, (void *)call->address + 8);
	event.version = address.family == AF_INET6 && !is_mapped(event.daddr) ? 6 : 4;
	if (address.family == AF_INET)
		__builtin_memcpy(event.daddr, &address.v4, 4);
	else if (event.version == 4)
		__builtin_memcpy(event.daddr, event.daddr + 12, 4);
	read_owner(&event.owner, cgroup);
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
		/* the first two only come as an answer, which then no program saw */
		finish_attempt(socket.sk, event, error == ECONNREFUSED || error == ETIMEDOUT ? outcome_of(error) : FAILED, error, 0, 0);
		untrack(socket.sk);
		return 0;
	}
	key = (u64)socket.sk;
	inode = failed.lookup(&key);
	if (inode && *inode == inode_number((void *)socket.file)) {
		failed.delete(&key); /* told when it happened, in this call or before it */
		return 0;
	}
#ifndef MIN_LATENCY
	failed_call(socket.sk, &call, error);
#endif
	return 0;
}

#ifndef PREEMPTIBLE
int tp__syscalls__sys_exit_connect(struct exit_args *ctx)
{
	return left_connect(ctx->ret);
}
#endif

/* The first repetition of a SYN: a second has passed without an answer. */
int raw_tp__tcp_retransmit_skb(struct { u64 sk; } *ctx)
{
	struct sock *sk = (void *)ctx->sk;
	struct event *event, copy;

	if (READ_IF(ARGUMENTS_TYPED, sk, __sk_common.skc_state) != SYN_SENT)
		return 0;
	event = attempt_of(sk);
	if (!event)
		return 0;
	event->retransmits++;
#if !defined(LATENCY) && !defined(FAILURE_ONLY)
	if (event->outcome == UNANSWERED)
		return 0;
	event->outcome = UNANSWERED;
	copy = *event;
	copy.timestamp = bpf_ktime_get_ns();
	copy.sport = local_port(sk, ARGUMENTS_TYPED);
	submit(&copy);
#endif
	return 0;
}
#endif /* TRACE_CONNECT */

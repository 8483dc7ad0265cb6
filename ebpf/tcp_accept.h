/* SPDX-License-Identifier: GPL-2.0-only */
/* Accepted connections; with FAILURE_ONLY, accepts that failed. */
/* The current task has got a connection, or has failed to. */
static __always_inline int report_accept(struct sock *sk, struct tracked *tracked)
{
	struct event *event = &tracked->event;
	u64 cgroup;

	if (!is_tcp(sk))
		return 0;
	if (!current_wanted(&cgroup)) {
		if (CLOSES)
			ignore_accepted(connection_of(sk));
		return 0;
	}
	read_ends(event, sk);
	if (!port_wanted(event->sport) && !port_wanted(event->dport))
		return 0;
	read_owner_of(&event->owner, cgroup);
	event->timestamp = bpf_ktime_get_ns();
	submit(event);
	if (CLOSES)
		set_owner(connection_of(sk), tracked);
	return 0;
}

/*
 * A program at the end of a function is not called where the function began before it was attached: not for the
 * first connection of a thread that has been waiting in accept() since. User space lists these threads; what they
 * get is seen where it is given to them, security_sock_graft(). Its address is kept until the thread's next accept():
 * for a thread that began to wait in between, both programs are called, and the second one reports nothing.
 */
#define WAITING_THREADS 65536
BPF_HASH(waiting, u32, u64, CALLS_BY_FEXIT && ACCEPTS ? WAITING_THREADS : 1);

static __always_inline int got_while_waiting(struct sock *sk)
{
	u32 thread = bpf_get_current_pid_tgid();
	u64 *got = CALLS_BY_FEXIT && !FAILURE_ONLY ? waiting.lookup(&thread) : NULL;
	int same;

	if (!got)
		return 0;
	same = *got == (u64)sk;
	waiting.delete(&thread);
	return same;
}

/* The verifier knows the address as that of a socket, and allows no arithmetic on it; it does on what is read. */
static __always_inline struct sock *untyped(struct sock *typed)
{
	struct sock *sk = NULL;

	bpf_probe_read_kernel(&sk, sizeof(sk), &typed);
	return sk;
}

static __always_inline int report_waiting(struct sock *typed)
{
	struct tracked tracked = { .event = { .type = ACCEPT, .direction = INCOMING, .outcome = DONE, .accept_fd = -1 } };
	u32 thread = bpf_get_current_pid_tgid();
	u64 *got = waiting.lookup(&thread);
	struct sock *sk;

	if (!got)
		return 0;
	if (*got) { /* of a later accept(), at whose end left_accept() is called; the address may be the same again */
		waiting.delete(&thread);
		return 0;
	}
	sk = untyped(typed);
	*got = (u64)sk;
	tracked.event.fd = current_call().fd;
	return report_accept(sk, &tracked);
}

static __always_inline int left_accept(s64 ret)
{
	struct tracked tracked = { .event = { .type = ACCEPT, .direction = INCOMING, .outcome = DONE, .accept_fd = -1 } };
	struct event *event = &tracked.event;
	struct socket socket;
	s32 fd = ret;

	if (FAILURE_ONLY ? fd >= 0 || fd == -EAGAIN || fd == -EINTR || fd <= -ERESTARTSYS : fd < 0)
		return 0;
	event->fd = current_call().fd;
	if (FAILURE_ONLY) {
		event->outcome = FAILED;
		event->error = -fd;
		fd = event->fd;
	} else {
		event->accept_fd = fd;
	}
	if (!current_socket(fd, &socket)) {
		/* another thread has closed it already, or had the descriptor lead to something else */
		if (fd != event->fd && current_socket(event->fd, &socket) && is_tcp(socket.sk))
			count_lost(LOST_ACCEPTS);
		return 0;
	}
	return got_while_waiting(socket.sk) ? 0 : report_accept(socket.sk, &tracked);
}

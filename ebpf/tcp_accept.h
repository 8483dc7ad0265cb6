/* SPDX-License-Identifier: GPL-2.0-only */
/* Accepted connections; with FAILURE_ONLY, accepts that failed. */
static __always_inline int left_accept(s64 ret)
{
	struct tracked tracked = { .event = { .type = ACCEPT, .outcome = DONE, .accept_fd = -1 } };
	struct event *event = &tracked.event;
	struct socket socket;
	s32 fd = ret;
	u64 cgroup;

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
	if (!is_tcp(socket.sk))
		return 0;
	if (!current_wanted(&cgroup)) {
		if (CLOSES)
			ignore_accepted(connection_of(socket.sk));
		return 0;
	}
	read_ends(event, socket.sk);
	if (!port_wanted(event->sport) && !port_wanted(event->dport))
		return 0;
	read_owner(&event->owner, cgroup);
	event->timestamp = bpf_ktime_get_ns();
	submit(event);
	if (CLOSES)
		set_owner(connection_of(socket.sk), &tracked);
	return 0;
}

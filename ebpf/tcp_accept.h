/* SPDX-License-Identifier: GPL-2.0-only */
/* Connections accepted, and, if failures are asked for, accepts that failed. */
#ifdef TRACE_ACCEPT
static __always_inline int entered_accept(struct enter_args *ctx)
{
	struct call call = { .fd = ctx->args[0] };
	u32 tid = bpf_get_current_pid_tgid();

	if (calls.update(&tid, &call))
		count_lost(LOST_CALLS);
	return 0;
}

/* The descriptor that accept() was called with, -1 if that was before the trace. */
static __always_inline s32 listener_of_call(void)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct call *call = calls.lookup(&tid);
	s32 fd = call ? call->fd : -1;

	calls.delete(&tid);
	return fd;
}

static __always_inline int left_accept(struct exit_args *ctx)
{
	struct event event = { .type = ACCEPT, .outcome = DONE, .accept_fd = -1 };
	struct socket socket;
	s32 fd = ctx->ret;
	u64 cgroup;

	event.fd = listener_of_call();
#ifdef FAILURE_ONLY
	if (fd >= 0 || fd == -EAGAIN || fd == -EINTR || fd <= -ERESTARTSYS)
		return 0;
	event.outcome = FAILED;
	event.error = -fd;
	fd = event.fd;
#else
	if (fd < 0)
		return 0;
	event.accept_fd = fd;
#endif
	if (!current_socket(fd, &socket) || !is_tcp(socket.sk))
		return 0;
	if (!current_wanted(&cgroup)) {
		disown(socket.sk);
		return 0;
	}
	read_socket(&event, socket.sk);
	event.sport = local_port(socket.sk);
	if (!port_wanted(event.sport) && !port_wanted(event.dport)) {
		disown(socket.sk);
		return 0;
	}
	read_owner(&event.owner, cgroup);
	event.timestamp = bpf_ktime_get_ns();
	submit(&event);
	adopt(socket.sk, &event);
	return 0;
}

int tp__syscalls__sys_enter_accept(struct enter_args *ctx)
{
	return entered_accept(ctx);
}

int tp__syscalls__sys_enter_accept4(struct enter_args *ctx)
{
	return entered_accept(ctx);
}

int tp__syscalls__sys_exit_accept(struct exit_args *ctx)
{
	return left_accept(ctx);
}

int tp__syscalls__sys_exit_accept4(struct exit_args *ctx)
{
	return left_accept(ctx);
}
#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Programs that the kernel skips. It does not run a program at a raw tracepoint that is running already on
 * this CPU (05b24ff9b2cf "bpf: Prevent bpf program recursion for raw tracepoint probes", 6.1): events in an
 * interrupt of such a program would be missed.
 *
 * So raw_tp__NAME, the primary, has a backup: the same function, loaded again and attached after it. For each event
 * both are called, one after the other, and an interrupt can find but one of both running: the other handles
 * the interrupt's event. The backup finds out whether the primary was called, and does its work if not.
 * Two programs at one tracepoint cost four times what one does, as long as indirect calls do. So the backup is
 * attached when the primary has been skipped for the first time; what was missed until then is looked for: see
 * RECHECK. Programs without a backup are unpaired; what they miss is counted by the kernel.
 *
 * Since 7.0 (a46023d5616e "tracing: Guard __DECLARE_TRACE() use of __DO_TRACE_CALL() with SRCU-fast") such programs
 * can be preempted, so that events of many threads find both running. There, where PREEMPTIBLE is defined, the
 * primary is tp__CATEGORY__NAME, and raw_tp__NAME the backup alone. The kernel does not let the primary be preempted
 * (16718274ee75 "tracing: perf: Have perf tracepoint callbacks always disable preemption"). It is skipped in interrupts
 * of any program of that type; so the backup is attached from the start.
 *
 * Programs at a system call's own tracepoint can be preempted too, and all of that type are skipped on their CPU
 * meanwhile. The program of all calls, raw_syscalls:sys_exit, cannot, but makes every call slower. So there are
 * programs at the end of the calls' own functions instead, where CALLS_BY_FEXIT is defined; also where
 * perf_event_open() is denied, which all but raw tracepoints need.
 */
OPTION(PREEMPTIBLE, 0)
OPTION(CALLS_BY_FEXIT, 0)

/*
 * Whether a backup has nothing to do, since its primary has handled the event: the primary records the last event
 * that it handled, in a slot that few sockets share. `what` is never the same twice in a row for a socket.
 */
LOSS(BACKUP_HANDLED, "")
BPF_ARRAY(handled, u64, PREEMPTIBLE ? 4096 : 1);

static __always_inline int handled_by_primary(void *socket, u8 what, int backup)
{
	u64 value = (u64)socket << 8 | what;
	u32 slot = (u64)socket * 0x9e3779b97f4a7c15 >> 52;
	u64 *last = PREEMPTIBLE ? handled.lookup(&slot) : NULL;

	if (!last)
		return 0;
	if (backup && *last == value)
		return 1;
	if (backup)
		count_lost(BACKUP_HANDLED);
	*last = value;
	return 0;
}

/* Whether this is the backup. Not compiled twice: user space replaces the call by a number when it loads the program. */
static u64 (*is_backup)(void) = (void *)IS_BACKUP;

/* The programs of a tracepoint, where `wanted`: `handler` is called with the arguments, and whether it is the backup. */
struct inet_sock_set_state_arguments { u64 sk, old, new; };
struct inet_sock_set_state_fields { u64 common, sk; s32 old, new; };
#define PAIR(category, name, wanted, handler, arguments...) \
int tp__##category##__##name(struct name##_fields *ctx) \
{ \
	return PREEMPTIBLE && (wanted) ? handler(arguments, 0) : 0; \
} \
int raw_tp__##name(struct name##_arguments *ctx) \
{ \
	return (wanted) ? handler(arguments, is_backup()) : 0; \
}

/*
 * The program at a system call's end, where `wanted`. That at the end of the call's function, for 64-bit tasks, is
 * preempted only in the few instructions at its ends, before 6.10 as the kernel itself is; a task that is to yield
 * meanwhile yields there. Until it goes on, the kernel skips the program for other tasks on this CPU, and counts that.
 */
KERNEL_FUNCTION(bpf_preempt_disable, bpf_preempt_enable)
static void (*preempt_disable)(void) = (void *)KERNEL_FUNCTION_bpf_preempt_disable;
static void (*preempt_enable)(void) = (void *)KERNEL_FUNCTION_bpf_preempt_enable;
#define FUNCTION_END(name, wanted, handler, arguments...) \
int fexit__##name(struct name##_arguments *ctx) \
{ \
	if (CALLS_BY_FEXIT && (wanted)) { \
		if (KERNEL_FUNCTION_bpf_preempt_disable) \
			preempt_disable(); \
		handler(arguments); \
		if (KERNEL_FUNCTION_bpf_preempt_enable) \
			preempt_enable(); \
	} \
	return 0; \
}
#define CALL_END(name, wanted, handler) \
struct sys_##name##_arguments { u64 registers; s64 ret; }; \
FUNCTION_END(sys_##name, wanted, handler, ctx->ret) \
int tp__syscalls__sys_exit_##name(struct exit_args *ctx) \
{ \
	return !PREEMPTIBLE && !CALLS_BY_FEXIT && (wanted) ? handler(ctx->ret) : 0; \
}
/* The same of all system calls: `handler` is called with the number of each, too. */
#define ALL_CALLS_END(wanted, handler) \
int tp__raw_syscalls__sys_exit(struct exit_args *ctx) \
{ \
	return PREEMPTIBLE && !CALLS_BY_FEXIT && (wanted) ? handler(native_call(ctx), ctx->ret) : 0; \
}

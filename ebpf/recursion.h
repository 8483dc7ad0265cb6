/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Programs that the kernel skips. It does not run a program at a raw tracepoint that is running already on
 * this CPU (05b24ff9b2cf "bpf: Prevent bpf program recursion for raw tracepoint probes", 6.1): events in an
 * interrupt of such a program would be missed.
 *
 * So raw_tp__NAME, the primary, has a backup: raw_tp__NAME__backup, which is attached after it. For each event
 * both are called, one after the other, and an interrupt can find but one of both running: the other handles
 * the interrupt's event. The backup finds out whether the primary was called, and does its work if not.
 * Two programs at one tracepoint cost four times what one does, as long as indirect calls do. So the backup is
 * attached when the primary has been skipped for the first time; what was missed until then is looked for: see
 * RECHECK. Programs without a backup are unpaired; what they miss is counted by the kernel.
 *
 * Since 7.0 (a46023d5616e "tracing: Guard __DECLARE_TRACE() use of __DO_TRACE_CALL() with SRCU-fast") such programs
 * can be preempted, so that events of many threads find both running. There, where PREEMPTIBLE is defined, the
 * primary is tp__CATEGORY__NAME, which the kernel does not let be preempted (16718274ee75 "tracing: perf: Have perf
 * tracepoint callbacks always disable preemption"). It is skipped in interrupts of any program of that type; so the
 * backup is attached from the start.
 *
 * Programs at a system call's own tracepoint can be preempted too, and all of that type are skipped on their CPU
 * meanwhile. The program of all calls, raw_syscalls:sys_exit, cannot, but makes every call slower. So there are
 * programs at the end of the calls' own functions instead, where CALLS_BY_FEXIT is defined.
 */

/*
 * Whether a backup has nothing to do, since its primary has handled the event: the primary records the last event
 * that it handled, in a slot that few sockets share. `what` is never the same twice in a row for a socket.
 */
LOSS(BACKUP_HANDLED, "")
#ifdef PREEMPTIBLE
BPF_ARRAY(handled, u64, 4096);
#endif
static __always_inline int handled_by_primary(void *socket, u8 what, int backup)
{
#ifdef PREEMPTIBLE
	u64 value = (u64)socket << 8 | what;
	u32 slot = (u64)socket * 0x9e3779b97f4a7c15 >> 52;
	u64 *last = handled.lookup(&slot);

	if (!last)
		return 0;
	if (backup && *last == value)
		return 1;
	if (backup)
		count_lost(BACKUP_HANDLED);
	*last = value;
#endif
	return 0;
}

/*
 * A program at the end of a system call's function, for 64-bit tasks. If it runs already on this CPU, the kernel
 * skips it, and counts that. It is not preempted but for the few instructions at its ends, so that this is seldom.
 */
#ifdef CALLS_BY_FEXIT
KERNEL_FUNCTION(bpf_preempt_disable, bpf_preempt_enable)
static void (*preempt_disable)(void) = (void *)KERNEL_FUNCTION_bpf_preempt_disable;
static void (*preempt_enable)(void) = (void *)KERNEL_FUNCTION_bpf_preempt_enable;
struct call_end_args { u64 registers; s64 ret; };
#define CALL_END(name, handler) \
int fexit__sys_##name(struct call_end_args *ctx) \
{ \
	preempt_disable(); \
	handler(ctx->ret); \
	preempt_enable(); \
	return 0; \
}
#else
#define CALL_END(name, handler)
#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/* What signals.h does, for programs that report no signals. */

static __always_inline void expect_signals(struct event *event)
{
}

/* Returns 0 if there was room. */
static __always_inline int report(struct sock *sk, struct event *event)
{
	return events.ringbuf_output(event, sizeof(*event), BPF_RB_NO_WAKEUP);
}

/* SPDX-License-Identifier: GPL-2.0-only */
/* Segments that TCP sends again: what they are, and what the kernel's tracepoints say of them. */
KERNEL_TRACEPOINT(tcp_retransmit_skb)

/* What is sent again; data may be a FIN too. */
enum kind { SYN = 1, SYN_ACK, DATA };

/* What a socket in that state sends again: see tcp_states.h of Linux. */
#define KIND_IN(state) ((state) == SYN_SENT ? SYN : (state) == SYN_RECV ? SYN_ACK : DATA)

#define EPERM 1

struct retransmit_skb { u64 sk, skb, error; };
struct retransmit_synack { u64 listener, request; };

/*
 * Whether TCP has sent the segment again. "tcp: trace retransmit failures in tcp_retransmit_skb" (2025) has an error of one
 * that it has not, as it still waits in this host, for the answer to ARP for example; and EPERM of one that a rule of this
 * host has dropped then. Where the tracepoint has no error, it is called for neither.
 */
#define WAS_SENT(ctx) (ARGUMENTS_tracepoint_tcp_retransmit_skb < 3 || !(u32)(ctx)->error || (s32)(ctx)->error == -EPERM)

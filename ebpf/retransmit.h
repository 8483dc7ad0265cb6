/* SPDX-License-Identifier: GPL-2.0-only */
/* Segments that TCP sends again: what they are, and what the kernel's tracepoints say of them. */
KERNEL_TRACEPOINT(tcp_retransmit_skb)

/* What is sent again; data may be a FIN too. */
enum kind { SYN = 1, SYN_ACK, DATA };

struct retransmit_skb { u64 sk, skb, error; };
struct retransmit_synack { u64 listener, request; };

/* Whether the segment was sent. Where the tracepoint has no error, it is not called for one that was not. */
#define WAS_SENT(ctx) (ARGUMENTS_tracepoint_tcp_retransmit_skb < 3 || !(u32)(ctx)->error)

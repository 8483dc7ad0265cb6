/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Segments that were sent again, counted by kind. SYNs are not: attempts count their own. A timer sends most of them, so
 * the current task may be anyone. The owner is who connected or accepted where that is tracked until the close; else it is
 * the socket's cgroup, in which it was made: of a SYN-ACK and of what was accepted that of the listener.
 */
KERNEL_STRUCT(sock, sk_max_ack_backlog)
KERNEL_STRUCT(inet_connection_sock, icsk_bind_hash)
KERNEL_STRUCT(inet_bind_bucket, fastreuse)
KERNEL_STRUCT(tcp_skb_cb, tcp_gso_segs)
KERNEL_STRUCT(request_sock, __req_common)

OPTIONAL_HOOK(raw_tp__tcp_retransmit_skb__count, "data sent again are not counted")
OPTIONAL_HOOK(raw_tp__tcp_retransmit_synack__count, "SYN-ACKs sent again are not counted")

/*
 * Who connected. What a listener has made is a copy of it (sk_clone_lock()), its limit included, but not that the port
 * was asked for. A port that connect() has chosen is in a bucket of such ports alone: __inet_hash_connect().
 */
static __always_inline u8 direction_of(struct sock *sk)
{
	struct inet_bind_bucket *bucket = (void *)READ((struct inet_connection_sock *)sk, icsk_bind_hash);

	if (READ(sk, sk_max_ack_backlog))
		return INCOMING;
	if (USER_LOCKS(sk) & SOCK_BINDPORT_LOCK || (bucket && (s8)READ(bucket, fastreuse) < 0))
		return OUTGOING;
	return UNKNOWN_DIRECTION; /* bind() chose the port, of it or of a listener whose limit is 0 */
}

static __always_inline int count_sent_again(struct sock *owner, struct sock_common *from, u8 kind, u8 direction, u32 segments)
{
	struct event event = { .direction = direction };
	struct tracked *tracked = tracked_of(owner);
	u64 key = (u64)owner;

	if (tracked)
		event.owner = tracked->event.owner;
	else if (ignored.lookup(&key) || !socket_wanted(owner, &event.owner.cgroup))
		return 0;
	read_socket(&event, from);
	event.timestamp = bpf_ktime_get_ns();
	count(&event, kind, segments);
	return 0;
}

int raw_tp__tcp_retransmit_skb__count(struct retransmit_skb *ctx)
{
	struct sock *sk = (void *)ctx->sk;
	struct tcp_skb_cb *sent;
	u8 kind;

	if (!COUNT_RETRANSMITS || !WAS_SENT(ctx))
		return 0;
	kind = KIND_IN(READ(sk, __sk_common.skc_state));
	if (kind == SYN)
		return 0;
	sent = (void *)((struct sk_buff *)ctx->skb)->cb;
	return count_sent_again(sk, &sk->__sk_common, kind, direction_of(sk), READ(sent, tcp_gso_segs));
}

int raw_tp__tcp_retransmit_synack__count(struct retransmit_synack *ctx)
{
	struct request_sock *request = (void *)ctx->request;

	if (!COUNT_RETRANSMITS)
		return 0;
	return count_sent_again((void *)ctx->listener, &request->__req_common, SYN_ACK, INCOMING, 1);
}

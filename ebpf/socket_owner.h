/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The owner of a TCP socket, for programs that run whatever task is current: who connected, accepted or listens, as it was then.
 * Of other sockets, those older than the trace for example, only their own cgroup and user are known.
 */
#include "recursion.h"

KERNEL_STRUCT(sock, sk_uid)
OWNER_IS_CURRENT(inet_sock_set_state)

BPF_TABLE("lru_hash", u64, struct owner, socket_owners, 65536);

static __always_inline void store_owner(struct sock *sk)
{
	struct owner owner = {};
	u64 key = (u64)sk, cgroup;

	current_cgroup_wanted(&cgroup); /* what the filters exclude is stored too, so that it stays excluded */
	read_owner(&owner, cgroup);
	socket_owners.update(&key, &owner);
}

static __always_inline void forget_owner(struct sock *sk)
{
	u64 key = (u64)sk;

	socket_owners.delete(&key);
}

/* Whether a socket's events are wanted, by the same filters as those of a task; says whose it is. */
static __always_inline int socket_owner_wanted(struct sock *sk, struct owner *owner)
{
	u64 key = (u64)sk;
	struct owner *stored = socket_owners.lookup(&key);
	u32 *verdict;

	if (!stored) {
		owner->uid = READ(sk, sk_uid.val);
		return FILTER_PID == ANY && (FILTER_UID == ANY || owner->uid == FILTER_UID) && socket_wanted(sk, &owner->cgroup);
	}
	*owner = *stored;
	if ((FILTER_PID != ANY && owner->pid != FILTER_PID) || (FILTER_UID != ANY && owner->uid != FILTER_UID))
		return 0;
	verdict = cgroups.lookup(&owner->cgroup);
	return !verdict || *verdict != DROP;
}

static __always_inline int change_owner(struct sock *sk, int old, int new, int backup)
{
	enum { SYN_SENT = 2, SYN_RECV, LISTEN = 10 }; /* include/net/tcp_states.h */

	if (handled_by_primary(sk, old << 4 | new, backup)) /* of each change: a slot has the last one that was handled */
		return 0;
	if (new != SYN_SENT && new != LISTEN && (new != SYN_RECV || old != LISTEN))
		return 0;
	if (new == SYN_RECV)
		forget_owner(sk); /* of an earlier socket at this address: a listener has made this one */
	else
		store_owner(sk);
	return 0;
}

PAIR(sock, inet_sock_set_state, 1, change_owner, (void *)ctx->sk, ctx->old, ctx->new)

int raw_tp__tcp_destroy_sock__owner(struct { u64 sk; } *ctx)
{
	forget_owner((void *)ctx->sk);
	return 0;
}

static __always_inline int store_accepted(s64 ret)
{
	struct socket socket;

	if (ret < 0 || !current_socket(ret, &socket) || READ(socket.sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	store_owner(socket.sk);
	return 0;
}

static __always_inline int store_accepted_of(s32 number, s64 ret)
{
	return number == NR_ACCEPT || number == NR_ACCEPT4 ? store_accepted(ret) : 0;
}

CALL_END(accept, 1, store_accepted)
CALL_END(accept4, 1, store_accepted)
ALL_CALLS_END(1, store_accepted_of)

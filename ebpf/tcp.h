/* SPDX-License-Identifier: GPL-2.0-only */
/* The events and maps of tcp.c and tcp_why.c, and what is read from a socket. */
#include "ig.h"
#include "recursion.h"
#include "address.h"

OPTION(TRACE_CONNECT, 0)	/* which events are reported */
OPTION(TRACE_ACCEPT, 0)
OPTION(TRACE_CLOSE, 0)
OPTION(CONNECT_ONLY, 0)
OPTION(ACCEPT_ONLY, 0)
OPTION(TRACE_DESCRIPTORS, 0)	/* also of connects */
OPTION(FAILURE_ONLY, 0)		/* only attempts that did not succeed, or go unanswered */
OPTION(LATENCY, 0)		/* a connect is reported when it has ended, not already when a SYN goes unanswered */
OPTION(MIN_LATENCY, 0)		/* ns; connects that ended sooner are not reported */
OPTION(FILTER_PORT, ANY)	/* destination port */
#define CONNECTS (TRACE_CONNECT && !ACCEPT_ONLY)
#define ACCEPTS (TRACE_ACCEPT && !CONNECT_ONLY)
#define CLOSES (TRACE_CLOSE && !CONNECT_ONLY && !ACCEPT_ONLY && !FAILURE_ONLY)

#define SS_UNCONNECTED 1
#define SO_EE_ORIGIN_ICMP 2
#define SOCK_BINDPORT_LOCK 8
#define TCP_CA_LOSS 4
enum {
	EINTR = 4, EAGAIN = 11, EACCES = 13, EFAULT = 14, EEXIST = 17, ENONET = 64, ENOPROTOOPT = 92, EADDRNOTAVAIL = 99,
	ENETUNREACH = 101, ECONNABORTED = 103, ECONNRESET = 104, ETIMEDOUT = 110, ECONNREFUSED = 111, EHOSTDOWN = 112,
	EHOSTUNREACH = 113, EINPROGRESS = 115, ERESTARTSYS = 512 /* this and what follows never leaves the kernel */
};

KERNEL_STRUCT(tcp_sock, bytes_sent, bytes_retrans, bytes_received, write_seq, snd_nxt, tcp_wstamp_ns, repair, is_mptcp)
KERNEL_STRUCT(sock, sk_err_soft, sk_error_queue, sk_userlocks, sk_dst_cache, sk_uid)
KERNEL_STRUCT(sk_buff_head, prev)
KERNEL_STRUCT(sk_buff, cb)
KERNEL_STRUCT(sock_exterr_skb, ee)
KERNEL_STRUCT(sock_extended_err, ee_errno, ee_origin)
KERNEL_STRUCT(inet_sock, cork)
KERNEL_STRUCT(inet_cork_full, fl)
KERNEL_STRUCT(flowi, u)
KERNEL_STRUCT(flowi4, daddr, uli)
KERNEL_TRACEPOINT(inet_sk_error_report, tcp_cong_state_set)
KERNEL_STRUCT(inet_connection_sock, icsk_ulp_data)
KERNEL_STRUCT(sock_common, skc_flags)
KERNEL_STRUCT(file, f_count, f_ref)
KERNEL_ENUM(sock_flags, SOCK_DONE)
OPTIONAL_STRUCT(mptcp_subflow_context, conn)
OPTIONAL_STRUCT(mptcp_sock, first, bytes_sent, bytes_received)

OWNER_IS_CURRENT(inet_sock_set_state)
OWNER_IS_CURRENT(security_sock_graft)
OPTIONAL_HOOK(raw_tp__tcp_cong_state_set, "unanswered attempts are reported only when they end")
OPTIONAL_HOOK(raw_tp__tcp_retransmit_skb, "unanswered attempts are reported only when they end")
OPTIONAL_HOOK(raw_tp__inet_sk_error_report, "no latency for attempts that end by an ICMP error")
OPTIONAL_HOOK(tp__syscalls__sys_exit_connect, "connects that fail before a SYN are not traced")

LOSS(LOST_ATTEMPTS, "too many connects were waiting for an answer")
LOSS(LOST_CONNECTIONS, "too many open connections to report each connect and close (upper bound)")
LOSS(LOST_ANSWERS, "connect results missed (BPF program skipped)")
LOSS(LOST_ACCEPTS, "a connection was closed by another thread before accept() returned it")
LOSS(LOST_ENDS, "closes of connections never accepted missed (upper bound)")

#ifdef BIT_OFFSET_sock_sk_userlocks
#define USER_LOCKS(sk) BITS(sk, BIT_OFFSET_sock_sk_userlocks, 4)
#else
#define USER_LOCKS(sk) READ(sk, sk_userlocks)
#endif

enum state { RECHECK, ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSED, CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING };
enum type { CONNECT = 1, ACCEPT, CLOSE, UNKNOWN };
enum direction { UNKNOWN_DIRECTION, OUTGOING, INCOMING };	/* who connected: this end, or the far one */
enum outcome { NONE, DONE, REFUSED, TIMED_OUT, UNREACHABLE, FAILED, ABANDONED, UNANSWERED };

struct event {
	u64 timestamp;		/* ns since boot; while an attempt lasts, when it began */
	u64 latency;		/* ns from the SYN to the reply, 0 if there was none; while an attempt lasts, to an ICMP error */
	u64 duration;		/* ns from established (or accepted) to closed */
	u64 half_closed;	/* ns from shutdown() to closed; while the connection lasts, when shutdown() was called */
	u64 sent, received;	/* bytes */
	u64 waited;		/* of an attempt: ns from the SYN until now, 0 if unknown */
	struct owner owner;
	u32 netns, error;
	u32 update;		/* 1 if the attempt was reported as unanswered before */
	u32 direction;		/* enum direction */
	s32 fd, accept_fd;
	u8 saddr[16], daddr[16];
	char zone[DEVICE_NAME];	/* of link-local addresses */
	u16 sport, dport;	/* host order */
	u8 version, type, outcome, retransmits;
};

/* What is known of a socket; how one state becomes another: see tcp_close.h. */
enum socket_state { ATTEMPT, OPEN, UNCLAIMED, REPORTED };

/* A socket, with what is known of its next event. While the connection lasts, `timestamp` is when it was made. */
struct tracked {
	struct event event;
	u64 state;		/* enum socket_state */
};

BPF_HASH(sockets, struct sock *, struct tracked, CLOSES ? 131072 : 65536);
/* Sockets whose attempt failed, and their inode's number: connect() has yet to return why. */
BPF_TABLE("lru_hash", u64, u64, failed, 65536);

#include "ends.h"
#include "tcp_count.h"

static __always_inline void read_owner_of(struct owner *owner, u64 cgroup)
{
	if (COUNT_EVENTS)
		read_counted_owner(owner, cgroup);
	else
		read_owner(owner, cgroup);
}

static __always_inline struct tracked *tracked_of(struct sock *key)
{
	return sockets.lookup(&key);
}

static __always_inline int track(struct sock *key, struct tracked *tracked)
{
	return sockets.update(&key, tracked);
}

/* Only what is not tracked yet: of two processors, the first one succeeds. Returns 0, -EEXIST, or another error. */
static __always_inline int track_new(struct sock *key, struct tracked *tracked)
{
	return sockets.insert(&key, tracked);
}

/* Returns whether it was tracked: true for one of two processors. */
static __always_inline int untrack(struct sock *key)
{
	return !sockets.delete(&key);
}

/* The attempt of a socket, if it is one. */
static __always_inline struct event *attempt_of(struct sock *sk)
{
	struct tracked *tracked = tracked_of(sk);

	return tracked && tracked->state == ATTEMPT ? &tracked->event : NULL;
}

static __always_inline u16 local_port(struct sock *sk)
{
	return NTOHS(READ((struct inet_sock *)sk, inet_sport)); /* skc_num is already 0 at CLOSE */
}

static __always_inline void read_ends(struct event *event, struct sock *sk)
{
	read_socket(event, &sk->__sk_common);
	if (!event->sport)
		event->sport = local_port(sk);
}

static __always_inline int is_tcp(struct sock *sk)
{
	u16 protocol = READ(sk, sk_protocol), family;

	if (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP)
		return 0;
	family = READ(sk, __sk_common.skc_family);
	return family == AF_INET || family == AF_INET6;
}

#ifdef HAVE_mptcp_sock_first
/* The MPTCP socket whose data a TCP socket carries, NULL if it carries its own. */
static __always_inline struct mptcp_sock *mptcp_of(struct sock *sk)
{
	struct mptcp_subflow_context *context;

	if (!READ((struct tcp_sock *)sk, is_mptcp))
		return NULL;
	context = (void *)READ((struct inet_connection_sock *)sk, icsk_ulp_data);
	return (void *)READ(context, conn);
}
#define FIRST_SUBFLOW(mptcp) ((struct sock *)READ((struct mptcp_sock *)(mptcp), first))
#else
#define mptcp_of(sk) NULL
#define FIRST_SUBFLOW(mptcp) NULL
#endif

/* The TCP socket of a connection: that of an MPTCP one is its first subflow's, NULL if that is gone. */
static __always_inline struct sock *connection_of(struct sock *sk)
{
	return READ(sk, sk_protocol) == IPPROTO_MPTCP ? FIRST_SUBFLOW(sk) : sk;
}

/* Whether it is one more subflow of an MPTCP connection, which is none of its own. */
static __always_inline int is_later_subflow(struct sock *sk)
{
	struct mptcp_sock *mptcp = mptcp_of(sk);

	return mptcp && FIRST_SUBFLOW(mptcp) != sk;
}

static __always_inline int port_wanted(u16 port)
{
	return FILTER_PORT == ANY || port == FILTER_PORT;
}

static __always_inline u8 outcome_of(u32 error)
{
	switch (error) {
	case 0: return ABANDONED;
	case ECONNREFUSED: return REFUSED;
	case ETIMEDOUT: return TIMED_OUT;
	/* what an ICMP message can say: icmp_err_convert[], tab_unreach[] */
	case EHOSTUNREACH: case ENETUNREACH: case EHOSTDOWN: case ENONET: case ENOPROTOOPT: case EACCES: return UNREACHABLE;
	default: return FAILED;
	}
}

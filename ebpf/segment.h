/* SPDX-License-Identifier: GPL-2.0-only */
/* TCP segments in the kernel's buffers that begin a connection or answer that: whose they are, and whose attempt's. */
KERNEL_STRUCT(sk_buff, head, network_header, protocol, skb_iif, dev, sk)
KERNEL_STRUCT(net_device, nd_net)

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

enum segment_kind { NO_SEGMENT, SYN_SEGMENT, ANSWER_SEGMENT };

struct ipv4_header { u8 version_length, tos; u16 total, id, fragment; u8 ttl, protocol; u16 check; u32 saddr, daddr; };
struct ipv6_header { u32 version; u16 payload; u8 next, hops; struct halves saddr, daddr; };
struct tcp_header { u16 sport, dport; u32 seq, ack; u8 offset, flags; u16 window; };

/* A SYN, or an answer to one, and what identifies the attempt. */
struct segment {
	struct halves client;
	u32 number;		/* the initial sequence number */
	u16 sport, dport;	/* of the client and the server */
	u8 kind;		/* enum segment_kind */
};

static __always_inline int read_tcp(struct segment *segment, const void *at, struct halves *saddr, struct halves *daddr)
{
	struct tcp_header tcp = {};
	int from_client;

	bpf_probe_read_kernel(&tcp, sizeof(tcp), at);
	from_client = (tcp.flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
	if (!from_client && (!(tcp.flags & TCP_ACK) || !(tcp.flags & (TCP_SYN | TCP_RST))))
		return 0;
	segment->kind = from_client ? SYN_SEGMENT : ANSWER_SEGMENT;
	segment->number = from_client ? __builtin_bswap32(tcp.seq) : __builtin_bswap32(tcp.ack) - 1;
	segment->client = from_client ? *saddr : *daddr;
	segment->sport = NTOHS(from_client ? tcp.sport : tcp.dport);
	segment->dport = NTOHS(from_client ? tcp.dport : tcp.sport);
	return 1;
}

/* Whether it is a SYN or an answer to one. */
static __always_inline int read_segment(struct segment *segment, struct sk_buff *skb)
{
	const void *start = (void *)READ(skb, head) + READ(skb, network_header);
	u16 protocol = NTOHS(READ(skb, protocol));
	struct halves saddr = {}, daddr = {};
	struct ipv4_header v4 = {};
	struct ipv6_header v6 = {};

	if (protocol == ETH_P_IP) {
		bpf_probe_read_kernel(&v4, sizeof(v4), start);
		if (v4.protocol != IPPROTO_TCP || NTOHS(v4.fragment) & 0x1fff)
			return 0;
		*(u32 *)&saddr = v4.saddr;
		*(u32 *)&daddr = v4.daddr;
		return read_tcp(segment, start + (v4.version_length & 0xf) * 4, &saddr, &daddr);
	}
	if (protocol != ETH_P_IPV6)
		return 0;
	bpf_probe_read_kernel(&v6, sizeof(v6), start);
	return v6.next == IPPROTO_TCP && read_tcp(segment, start + sizeof(v6), &v6.saddr, &v6.daddr);
}

/* The network namespace that it is in, or of the socket that sends it while it is `leaving` that; 0 if unknown. */
static __always_inline u32 netns_of(struct sk_buff *skb, int leaving)
{
	struct net_device *device = (void *)READ(skb, dev);
	struct sock *sk = (void *)READ(skb, sk);
	struct net *net = NULL;

	if (leaving && sk)
		net = (void *)READ(sk, __sk_common.skc_net.net);
	else if (device)
		net = (void *)READ(device, nd_net.net);
	return net ? READ(net, ns.inum) : 0;
}

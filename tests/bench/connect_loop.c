/* SPDX-License-Identifier: GPL-2.0-only */
/* Connects, accepts and closes on loopback as fast as one thread can; prints its CPU time, in ns each. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 1000, listener = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct linger reset = { 1, 0 }; /* no TIME_WAIT: ports must not run out */
	socklen_t size = sizeof(address);
	struct timespec begin, end;

	bind(listener, (void *)&address, size);
	listen(listener, 128);
	getsockname(listener, (void *)&address, &size);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
	for (int i = 0; i < count; i++) {
		int client = socket(AF_INET, SOCK_STREAM, 0), server;

		setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		if (connect(client, (void *)&address, size))
			return 1;
		server = accept(listener, NULL, NULL);
		close(server);
		close(client);
	}
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
	printf("%.0f\n", ((end.tv_sec - begin.tv_sec) * 1e9 + (end.tv_nsec - begin.tv_nsec)) / count);
	return 0;
}

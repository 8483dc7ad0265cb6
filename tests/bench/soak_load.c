/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The load of the soak. `soak_load serve PORT PORTS THREADS` accepts on so many ports and reads
 * each connection to its end; `soak_load connect ADDRESS PORT PORTS THREADS SECONDS` connects,
 * sends a byte and closes. Both print a JSON line once they are ready, and in the end (the server's
 * is SIGTERM) how many calls succeeded and how many failed.
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static atomic_long succeeded, failed;
static atomic_int stopping;
static int first_port, ports;
static int *listeners;
static struct in_addr target;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void *serve(void *argument)
{
	int listener = listeners[(long)argument % ports];
	struct timeval patience = {.tv_sec = 1};
	char byte[16];

	for (;;) {
		int connection = accept(listener, NULL, NULL);

		if (connection < 0) {
			failed++;
			continue;
		}
		succeeded++;
		/* A reset that the network drops under such load is never sent again. */
		setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
		while (read(connection, byte, sizeof(byte)) > 0)
			;
		close(connection);
	}
	return NULL;
}

static void *keep_connecting(void *argument)
{
	/* A reset leaves no TIME-WAIT behind, which would use up the ports. */
	struct linger reset = {1, 0};
	long number = (long)argument;

	while (!stopping) {
		struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = target};
		int client = socket(AF_INET, SOCK_STREAM, 0);

		if (client < 0)
			fail("socket");
		address.sin_port = htons(first_port + number++ % ports);
		if (connect(client, (struct sockaddr *)&address, sizeof(address))) {
			failed++;
		} else {
			succeeded++;
			if (write(client, "x", 1) < 0)
				fail("write");
		}
		if (number % 256)
			setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(client);
	}
	return NULL;
}

static void listen_on_all(void)
{
	int one = 1;

	listeners = calloc(ports, sizeof(*listeners));
	for (int index = 0; index < ports; index++) {
		struct sockaddr_in address = {.sin_family = AF_INET};

		address.sin_port = htons(first_port + index);
		listeners[index] = socket(AF_INET, SOCK_STREAM, 0);
		setsockopt(listeners[index], SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (bind(listeners[index], (struct sockaddr *)&address, sizeof(address)))
			fail("bind");
		if (listen(listeners[index], 4096))
			fail("listen");
	}
}

int main(int count, char **words)
{
	int serves = count > 1 && !strcmp(words[1], "serve");
	int threads, signals = 0;
	pthread_t started;
	sigset_t ends;

	if (count != (serves ? 5 : 7))
		return 2;
	if (!serves && !inet_aton(words[2], &target))
		return 2;
	words += serves ? 2 : 3;
	first_port = atoi(words[0]);
	ports = atoi(words[1]);
	threads = atoi(words[2]);
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &ends, NULL);
	if (serves)
		listen_on_all();
	pthread_t all[threads];
	for (long number = 0; number < threads; number++) {
		if (pthread_create(&started, NULL, serves ? serve : keep_connecting, (void *)number))
			fail("pthread_create");
		all[number] = started;
	}
	printf("{\"ready\": true}\n");
	fflush(stdout);
	if (serves) {
		sigwait(&ends, &signals);
	} else {
		sleep(atoi(words[3]));
		stopping = 1;
		for (int number = 0; number < threads; number++)
			pthread_join(all[number], NULL);
	}
	printf("{\"succeeded\": %ld, \"failed\": %ld}\n", succeeded, failed);
	return 0;
}

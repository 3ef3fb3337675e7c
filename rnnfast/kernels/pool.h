/* A pool of threads that sleep until a call has work to share.
 *
 * A call opens a team, runs phases on it and closes it. The caller is member 0 and works too; it never waits for a
 * worker that has not arrived yet: a woken worker counts from the moment that it is there. Between the phases of an
 * open team those that are there spin, between calls all sleep. Any number of threads may have teams open at once, a
 * member of a team its own as well: each gets the workers that are asleep, fewer than it wants or none. Where workers
 * keep losing their cores to others, for some time there are none.
 *
 * Only the thread that opened a team calls these functions on it, not from within its phases, and does not fork
 * before it has closed it. After a fork the child has no workers, and none are made before rnnfast_pool_start.
 */
#ifndef RNNFAST_POOL_H
#define RNNFAST_POOL_H

#include <stdalign.h>
#include <stdatomic.h>

enum {
    TEAM_MAX = 64,                  /* members of a team */
    TEAM_LINE = 128                 /* bytes between what different cores write: a pair of lines, or one of Apple's */
};

typedef void (*team_work)(void *argument, int part, int parts);

/* On the caller's stack, for one call. The fields are the pool's. */
typedef struct team {
    struct worker *first, **last;   /* the workers that are here, in the order of their parts */
    struct worker *pending;         /* those that were woken and are not here yet */
    int count;                      /* members that are here, the caller among them */
    long long opened, lost;         /* when, 0: it is not to be; how long the caller has waited for members who had lost
                                       their cores; in ns */
    team_work work;                 /* of `each`; late workers look for it while `open` is set */
    void *argument;
    int items;
    atomic_int next, open, guests;  /* the next item; guests: late workers inside */
    struct { alignas(TEAM_LINE) atomic_uint waits; } lanes[TEAM_MAX];   /* how often each member has waited */
} team;

/* Up to `limit` threads work at once, callers of one team among them; each new worker first calls `prepare`. */
void rnnfast_pool_start(int limit, unsigned (*prepare)(void));

/* The limit, 0 if the pool was not started in this process. */
int rnnfast_pool_limit(void);

/* For tests: up to `threads` work at once whatever the CPUs, and a team opens when all of its members are here. 0: no
 * longer. */
void rnnfast_pool_force(int threads);

/* Wakes workers for a team of up to `threads` members, capped by the CPUs of the caller's affinity mask. `brief` work
 * is done before one that sleeps would be here: it has a team only right behind another call, whose workers are awake or
 * will be for the next. */
void rnnfast_team_open(team *t, int threads, int brief);

/* work(argument, i, n) for each i of 0 .. n-1 at the same time, n = members that are here. A member keeps its i. */
void rnnfast_team_split(team *t, team_work work, void *argument);

/* Within the work of a split, by each of its `parts` members the same number of times: returns when all have called. */
void rnnfast_team_wait(team *t, int part, int parts);

/* work(argument, i, items) for each i of 0 .. items-1, one after the other by whoever is free, latecomers too. */
void rnnfast_team_each(team *t, int items, team_work work, void *argument);

void rnnfast_team_close(team *t);

#endif

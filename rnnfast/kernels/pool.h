/* A pool of threads (workers) that sleep until a call has work to share.
 *
 * A call opens a team, runs phases on it and closes it. The caller is member 0 and works too. It never waits for a
 * worker that has not arrived yet: a woken worker becomes a member when it arrives. Between the phases of an open team
 * its members spin; between calls all workers sleep. Any number of threads may have teams open at the same time, and a
 * member of a team may open its own: each team gets the workers that are asleep, which may be fewer than it wants, or
 * none. If workers keep losing their cores to other threads, teams get no workers for some time.
 *
 * Only the thread that opened a team calls these functions on it, and not from within its phases, except for
 * rnnfast_team_wait. It must not fork before it has closed the team. After a fork the child has no workers, and none
 * are created before rnnfast_pool_start.
 */
#ifndef RNNFAST_POOL_H
#define RNNFAST_POOL_H

#include <stdalign.h>
#include <stdatomic.h>

enum {
    TEAM_MAX = 64,                  /* most members of a team */
    TEAM_LINE = 128                 /* bytes between data of different cores: two cache lines, or one of Apple's */
};

/* Do part `part` of `parts`. */
typedef void (*team_work)(void *argument, int part, int parts);

/* A team lies on the caller's stack for one call. Only the pool uses its fields. */
typedef struct team {
    struct worker *first, **last;   /* the workers that have arrived, in the order of their parts */
    struct worker *pending;         /* those that were woken and have not arrived yet */
    int count;                      /* members, including the caller */
    long long opened, lost;         /* in ns: when the team was opened (0: not at all), and how long the caller has
                                       waited for members that had lost their cores */
    team_work work;                 /* that of rnnfast_team_each; late workers join it while `open` is set */
    void *argument;
    int items;
    atomic_int next, open, guests;  /* `next` item; guests: late workers that are looking at the fields */
    struct { alignas(TEAM_LINE) atomic_uint waits; } lanes[TEAM_MAX];   /* how often each member has waited */
} team;

/* Set the most threads that work at once, including the caller of a team. Each new worker first calls `prepare`. */
void rnnfast_pool_start(int limit, unsigned (*prepare)(void));

/* Return the limit, or 0 if the pool was not started in this process. */
int rnnfast_pool_limit(void);

/* For tests: up to `threads` threads work at once, whatever the number of CPUs, and a team is open only when all of its
 * members have arrived. 0 turns this off. */
void rnnfast_pool_force(int threads);

/* Wake workers for a team of up to `threads` members, but no more than the caller's affinity mask has CPUs. `brief`
 * work is done before a sleeping worker could arrive: it gets a team only right after another call, when the workers
 * are still awake, or are woken for the calls that follow. */
void rnnfast_team_open(team *t, int threads, int brief);

/* Run work(argument, i, n) for each i of 0 .. n-1 at the same time, where n is the number of members. A member keeps
 * its i from split to split. */
void rnnfast_team_split(team *t, team_work work, void *argument);

/* A barrier within the work of a split: returns when all `parts` members have called it. All of them must call it the
 * same number of times. */
void rnnfast_team_wait(team *t, int part, int parts);

/* Run work(argument, i, items) for each i of 0 .. items-1. Whichever member is free takes the next i; workers that
 * arrive late take part. */
void rnnfast_team_each(team *t, int items, team_work work, void *argument);

/* Let the workers go back to sleep. */
void rnnfast_team_close(team *t);

#endif

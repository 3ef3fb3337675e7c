/* How a long call ends early: because of a signal, a deadline or a caller's flag.
 *
 * Work is counted in estimated nanoseconds. Each thread of a call counts its own in a `watch`. After LOOK_COST of it the
 * thread looks: the one that made the call reads the clock and, now and then, lets Python handle signals; the others
 * only see whether the call was stopped. Whoever learns that it was returns at once: its results are dropped. */
#ifndef RNNFAST_INTERRUPT_H
#define RNNFAST_INTERRUPT_H

#include <stdatomic.h>
#include <stdint.h>

enum {
    LOOK_COST = 100000,         /* estimated; a look takes 30 ns. Without vector instructions work takes 30 times as long */
    COMMAND_COST = 50           /* of any command, besides the work that it counts itself */
};

/* Why a call was stopped. */
enum { STOPPED_NOT, STOPPED_BY_SIGNAL, STOPPED_BY_DEADLINE, STOPPED_BY_FLAG };

typedef struct watch {
    int64_t left;               /* work until the next look; below 0 once the call was stopped */
    struct interrupt *call;
} watch;

/* One for each call, which all of its threads share. */
typedef struct interrupt {
    int (*look)(watch *);       /* returns whether the call was stopped */
    atomic_int stopped;         /* a STOPPED_* */
    unsigned long owner;        /* the thread that made the call; only this one uses the fields below */
    int64_t deadline;           /* nanoseconds of the monotonic clock */
    double seconds;             /* that the deadline allows */
    int64_t due;                /* when signals are handled next; 0 before the first look */
    const atomic_int *flag;     /* the call stops when it is not 0; or NULL */
    watch watch;                /* that of the owner */
} interrupt;

/* Count work. Returns whether the call was stopped. */
static inline int rnnfast_spend(watch *w, int64_t cost)
{
    return (w->left -= cost) < 0 && w->call->look(w);
}

/* Return a new watch for any thread of the call. */
static inline watch rnnfast_watch_of(interrupt *call)
{
    const watch w = { LOOK_COST, call };
    return w;
}

/* Look now. Returns whether the call was stopped. */
static inline int rnnfast_look(interrupt *call)
{
    watch w = rnnfast_watch_of(call);
    return call->look(&w);
}

#endif

/* The pool of threads of pool.h.
 *
 * Its costs, medians on a virtual machine with 2 Xeon cores (Sapphire Rapids): a phase with empty work takes two
 * members 0.33 us, rnnfast_team_each of two items 0.40 us, or 0.01 us without workers; closing takes 0.3 us. Opening
 * takes 20 us if the worker's core has gone idle (for the interrupt that wakes the core; 2 us if it has not), and 0.3
 * us if the worker has not fallen asleep yet or was already woken. A worker arrives 64 us after the call, of which the
 * opener waits 20. */
#define _GNU_SOURCE             /* affinity, thread names */
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    STACK = 1 << 22,            /* bytes: kernels need up to 100 KiB, BLAS more, and with sanitizers more than 1 MiB */
    EAGER = 20,                 /* looks without a pause instruction, which takes 50 ns itself */
    SPINS = 2000,               /* looks (about 0.1 ms) before the core is yielded to other threads */
    STALL = SPINS + 100,        /* looks after which the awaited thread is taken to have lost its core */
    RECENT = 100000,            /* most nanoseconds between calls that count as back to back */
    LEAST_REST = 20, MOST_REST = 1000   /* milliseconds without teams after a call that waited half its time for
                                           lost cores: 4 times as many after each such call, a quarter after others */
};

/* The states of a worker, and who may change them: the opener IDLE -> OFFERED; then, whoever is first, the worker
 * OFFERED -> ENTERING or the opener OFFERED -> IDLE (the offer is revoked); the worker ENTERING -> SETTLED; the opener
 * SETTLED -> IDLE. Except for its tasks, a worker reads the team only while it is ENTERING, because the team is gone
 * once it is closed. */
enum { IDLE, OFFERED, ENTERING, SETTLED };

typedef struct worker {
    /* written by the owner: the opener of its team, or whoever holds the pool's lock while the worker is in a list */
    alignas(TEAM_LINE) atomic_uint task;     /* number of the last task posted; if its work is NULL: leave the team */
    team_work work;
    void *argument;
    int part, parts;
    struct worker *next;
    team *team;
    struct worker *older;               /* list of all workers that were ever made */
    pthread_t thread;
#ifdef __linux__
    cpu_set_t cpus;
#endif
    /* written by the worker */
    alignas(TEAM_LINE) atomic_uint done;     /* number of the last task done */
    alignas(TEAM_LINE) atomic_int state;
    int asleep;                         /* guarded by `lock`: waits for `wake`, which nobody has signalled yet */
    pthread_mutex_t lock;
    pthread_cond_t wake;
} worker;

static struct {
    pthread_mutex_t lock;               /* guards the numbers and lists */
    pthread_once_t once;
    atomic_int limit, forced;
    unsigned (*_Atomic prepare)(void);
    int workers;                        /* number of workers that were made in this process */
    worker *idle;
    worker *all;
    worker *spare;                      /* memory of workers whose threads did not survive a fork */
    atomic_int rest;                    /* length of the last time without teams, in milliseconds */
    atomic_llong rested;                /* when that time is over, in nanoseconds */
    atomic_llong closed;                /* when the last call was over, in nanoseconds */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

/* ------------------------------------------------------------------------------------------------ waiting */
/* Pause between two looks; `spins` is how many there were. */
static void relax(unsigned spins)
{
    if (spins >= SPINS)
        sched_yield();
    if (spins < EAGER)
        return;
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb");        /* `yield` does not wait on most of these cores */
#endif
}

/* Nanoseconds of a monotonic clock. */
static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Wait for task number `task` of a worker. The opener waits until each task but the last is done, so none is missed. */
static void await_task(worker *w, unsigned task)
{
    for (unsigned spins = 0; atomic_load_explicit(&w->task, memory_order_acquire) != task; spins++)
        relax(spins);
}

/* Wait until a worker has done its last task, and count the time for which it had lost its core. */
static void await_done(worker *w, team *t)
{
    const unsigned task = atomic_load_explicit(&w->task, memory_order_relaxed);
    unsigned spins = 0;
    for (; atomic_load_explicit(&w->done, memory_order_acquire) != task; spins++) {
        relax(spins);
        if (spins == STALL)
            t->lost -= now();
    }
    if (spins > STALL)
        t->lost += now();
}

/* Give a worker a task. */
static void post(worker *w, team_work work, void *argument, int parts)
{
    w->work = work;
    w->argument = argument;
    w->parts = parts;
    atomic_store_explicit(&w->task, atomic_load_explicit(&w->task, memory_order_relaxed) + 1, memory_order_release);
}

/* ------------------------------------------------------------------------------------------------ workers */
/* Take items of rnnfast_team_each until there are none left. */
static void drain(void *argument, int part, int parts)
{
    team *t = argument;
    (void)part, (void)parts;
    for (int item; (item = atomic_fetch_add(&t->next, 1)) < t->items;)
        t->work(t->argument, item, t->items);
}

/* Take part in an rnnfast_team_each that began before this worker could become a member. Either the worker sees `open`
 * here, or the opener, which looks at the workers' states after it has set `open`, counts the worker as a member. */
static void join_late(team *t)
{
    if (!atomic_load(&t->open))
        return;
    atomic_fetch_add(&t->guests, 1);
    if (atomic_load(&t->open))
        drain(t, 0, 0);
    atomic_fetch_sub(&t->guests, 1);
}

/* Wait for an offer and accept it. The worker spins for SPINS looks before it sleeps, because calls often follow one
 * another, and waking a thread takes 45 us if the core is idle, and several milliseconds on some virtual machines. */
static void sleep_until_offered(worker *w)
{
    for (unsigned spins = 0; spins < SPINS && atomic_load(&w->state) != OFFERED; spins++)
        relax(spins);
    pthread_mutex_lock(&w->lock);
    for (int state = OFFERED; !atomic_compare_exchange_strong(&w->state, &state, ENTERING); state = OFFERED) {
        w->asleep = 1;
        pthread_cond_wait(&w->wake, &w->lock);
    }
    w->asleep = 0;
    pthread_mutex_unlock(&w->lock);
}

/* The main function of a worker's thread. */
static void *live(void *argument)
{
    worker *w = argument;
#ifdef __linux__
    pthread_setname_np(pthread_self(), "rnnfast");
#elif defined(__APPLE__)
    pthread_setname_np("rnnfast");
#endif
    atomic_load(&pool.prepare)();
    for (unsigned task = 0;;) {
        sleep_until_offered(w);
        join_late(w->team);
        atomic_store(&w->state, SETTLED);
        for (await_task(w, ++task); w->work; await_task(w, ++task)) {
            w->work(w->argument, w->part, w->parts);
            atomic_store_explicit(&w->done, task, memory_order_release);
        }
    }
    return NULL;
}

/* Offer a place in a team to a worker, and wake it if it sleeps. */
static void offer(worker *w, team *t)
{
    w->team = t;
    pthread_mutex_lock(&w->lock);
    atomic_store(&w->state, OFFERED);
    const int signal = w->asleep;
    w->asleep = 0;
    pthread_mutex_unlock(&w->lock);
    if (signal)
        pthread_cond_signal(&w->wake);
}

/* Take a worker from a list. pop and push are called with the pool's lock held. */
static worker *pop(worker **list)
{
    worker *w = *list;
    if (w)
        *list = w->next;
    return w;
}

static void push(worker **list, worker *w)
{
    w->next = *list;
    *list = w;
}

/* Return memory for a worker, left behind by a fork or new, or NULL if there is none. */
static worker *allocate(void)
{
    void *memory;
    pthread_mutex_lock(&pool.lock);
    worker *w = pop(&pool.spare);
    pthread_mutex_unlock(&pool.lock);
    if (w || posix_memalign(&memory, TEAM_LINE, sizeof(worker)) != 0)
        return w;
    w = memory;
    pthread_mutex_lock(&pool.lock);
    w->older = pool.all;
    pool.all = w;
    pthread_mutex_unlock(&pool.lock);
    return w;
}

/* Start a worker with a place in `t` offered to it. Returns whether it was started. Its thread blocks all signals
 * except those that report its own errors. */
static int start(worker *w, team *t)
{
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS};
    sigset_t blocked, before;
    pthread_attr_t attributes;

    atomic_init(&w->task, 0);
    atomic_init(&w->done, 0);
    atomic_init(&w->state, OFFERED);
    w->asleep = 0;
    w->team = t;
    if (pthread_attr_init(&attributes) != 0)
        return 0;
    pthread_mutex_init(&w->lock, NULL);     /* neither fails without attributes on these systems */
    pthread_cond_init(&w->wake, NULL);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK);
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof(own) / sizeof(*own); i++)
        sigdelset(&blocked, own[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    const int error = pthread_create(&w->thread, &attributes, live, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (error) {
        pthread_mutex_destroy(&w->lock);
        pthread_cond_destroy(&w->wake);
    }
    return error == 0;
}

/* ------------------------------------------------------------------------------------------------ the pool */
static void before_fork(void)
{
    pthread_mutex_lock(&pool.lock);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&pool.lock);
}

static void after_fork_in_child(void)
{
    pool.idle = pool.spare = NULL;
    pool.workers = 0;
    for (worker *w = pool.all; w; w = w->older)
        push(&pool.spare, w);
    atomic_store(&pool.limit, 0);
    atomic_store(&pool.rest, 0);
    pthread_mutex_unlock(&pool.lock);
}

static void watch_forks(void)
{
    pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

void rnnfast_pool_start(int limit, unsigned (*prepare)(void))
{
    pthread_once(&pool.once, watch_forks);
    atomic_store(&pool.prepare, prepare);
    atomic_store(&pool.limit, limit);
}

int rnnfast_pool_limit(void)
{
    return atomic_load_explicit(&pool.limit, memory_order_relaxed);
}

void rnnfast_pool_force(int threads)
{
    atomic_store(&pool.forced, threads);
}

/* ------------------------------------------------------------------------------------------------ teams */
void rnnfast_team_open(team *t, int threads, int brief)
{
    const int forced = atomic_load_explicit(&pool.forced, memory_order_relaxed);
    const int limit = forced ? forced : rnnfast_pool_limit();
    int missing = (threads < limit ? threads : limit) - 1, created = 0;
    worker *w, **last = &t->pending;

    t->first = t->pending = NULL;
    t->last = &t->first;
    t->count = 1;
    t->opened = t->lost = 0;
    atomic_init(&t->lanes[0].waits, 0);
    atomic_init(&t->open, 0);
    atomic_init(&t->guests, 0);
    if (missing > TEAM_MAX - 1)
        missing = TEAM_MAX - 1;
    if (missing < 1 || (!forced && atomic_load_explicit(&pool.rest, memory_order_relaxed) && now() < pool.rested))
        return;
#ifdef __linux__
    cpu_set_t cpus;
    const int known = sched_getaffinity(0, sizeof cpus, &cpus) == 0;    /* fails with more than 1024 CPUs */
    if (known && !forced && missing > CPU_COUNT(&cpus) - 1)
        missing = CPU_COUNT(&cpus) - 1;
    if (missing < 1)
        return;
#endif

    t->opened = now();
    if (brief && !forced && t->opened - atomic_load_explicit(&pool.closed, memory_order_relaxed) > RECENT)
        return;
    pthread_mutex_lock(&pool.lock);
    for (; missing > 0 && (w = pop(&pool.idle)); missing--, last = &w->next)
        *last = w;
    *last = NULL;
    for (; missing > 0 && pool.workers < limit - 1; missing--, created++)
        pool.workers++;
    pthread_mutex_unlock(&pool.lock);

    for (w = t->pending; w; w = w->next) {
#ifdef __linux__
        if (known && !CPU_EQUAL(&cpus, &w->cpus)) {
            w->cpus = cpus;
            pthread_setaffinity_np(w->thread, sizeof cpus, &cpus);
        }
#endif
        offer(w, t);
    }
    for (; created > 0 && (w = allocate()); created--, last = &w->next) {
        w->next = NULL;
#ifdef __linux__
        CPU_ZERO(&w->cpus);
        if (known)
            w->cpus = cpus;             /* a new thread inherits its creator's mask */
#endif
        if (!start(w, t))
            break;
        *last = w;
    }
    if (created > 0) {                  /* no memory or no more threads: go on with fewer */
        pthread_mutex_lock(&pool.lock);
        pool.workers -= created;
        if (w)
            push(&pool.spare, w);
        pthread_mutex_unlock(&pool.lock);
    }
    for (w = forced ? t->pending : NULL; w; w = w->next)
        for (unsigned spins = 0; atomic_load(&w->state) == OFFERED; spins++)
            relax(spins);
}

/* Make members of the workers that have arrived. */
static void collect(team *t)
{
    worker *w, **link = &t->pending;
    while ((w = *link)) {
        if (atomic_load(&w->state) == OFFERED) {
            link = &w->next;
            continue;
        }
        *link = w->next;
        w->next = NULL;
        w->part = t->count++;
        atomic_init(&t->lanes[w->part].waits, atomic_load_explicit(&t->lanes[0].waits, memory_order_relaxed));
        *t->last = w;
        t->last = &w->next;
    }
}

void rnnfast_team_split(team *t, team_work work, void *argument)
{
    collect(t);
    for (worker *w = t->first; w; w = w->next)
        post(w, work, argument, t->count);
    work(argument, 0, t->count);
    for (worker *w = t->first; w; w = w->next)
        await_done(w, t);
}

void rnnfast_team_wait(team *t, int part, int parts)
{
    const unsigned waits = atomic_load_explicit(&t->lanes[part].waits, memory_order_relaxed) + 1;
    atomic_store_explicit(&t->lanes[part].waits, waits, memory_order_release);
    for (int i = 0; i < parts; i++) {
        unsigned spins = 0;
        for (; (int)(atomic_load_explicit(&t->lanes[i].waits, memory_order_acquire) - waits) < 0; spins++) {
            relax(spins);
            if (spins == STALL && part == 0)
                t->lost -= now();
        }
        if (spins > STALL && part == 0)
            t->lost += now();
    }
}

void rnnfast_team_each(team *t, int items, team_work work, void *argument)
{
    const long long lost = t->lost;
    t->work = work;
    t->argument = argument;
    t->items = items;
    atomic_store(&t->next, 0);
    atomic_store(&t->open, 1);
    rnnfast_team_split(t, drain, t);
    atomic_store(&t->open, 0);
    for (unsigned spins = 0; atomic_load(&t->guests); spins++)
        relax(spins);
    if (items <= t->count)          /* one item each: waiting for the longest one is normal */
        t->lost = lost;
}

/* Let a worker leave, without waiting until it has noticed: while it still spins, it takes its next offer without
 * having slept. */
static void release(worker *w)
{
    int state = OFFERED;
    if (atomic_compare_exchange_strong(&w->state, &state, IDLE))
        return;
    for (unsigned spins = 0; atomic_load(&w->state) != SETTLED; spins++)
        relax(spins);
    atomic_store(&w->state, IDLE);
    post(w, NULL, NULL, 0);
}

/* Decide for how long there are no teams: a core that others use too makes a team slower than its caller would be
 * alone. Returns the current time. */
static long long learn(const team *t)
{
    const long long closed = now();
    int rest = atomic_load_explicit(&pool.rest, memory_order_relaxed);
    if (t->count == 1)
        return closed;
    if (2 * t->lost > closed - t->opened) {
        rest = rest < LEAST_REST ? LEAST_REST : 4 * rest < MOST_REST ? 4 * rest : MOST_REST;
        atomic_store(&pool.rested, closed + rest * 1000000LL);
    } else {
        rest /= 4;
    }
    atomic_store_explicit(&pool.rest, rest, memory_order_relaxed);
    return closed;
}

void rnnfast_team_close(team *t)
{
    worker *w;
    if (!t->opened)
        return;
    atomic_store_explicit(&pool.closed, learn(t), memory_order_relaxed);
    *t->last = t->pending;
    if (!t->first)
        return;
    for (w = t->first; ; w = w->next) {
        release(w);
        if (!w->next)
            break;
    }
    /* Keep their order: the next team of this size then gives each worker the part whose data are in its cache. */
    pthread_mutex_lock(&pool.lock);
    w->next = pool.idle;
    pool.idle = t->first;
    pthread_mutex_unlock(&pool.lock);
}

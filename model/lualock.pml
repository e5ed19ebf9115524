/*
 * A model of lualock for Spin: one lock on one server, callers that acquire it once each, a network
 * that delays and loses, and a resource that remembers the greatest fence. `make model` checks it.
 *
 * Every step may be arbitrarily late. Callers are paused anywhere, even past their lease, and requests
 * arrive after their sender has gone on or has repeated them. Time passes before any step, but only
 * while a timer runs, so a caller with nothing to wait for acts in the end. A lost request is one that
 * arrives when it has no effect any more. Callers are alike, so they start in order. A second
 * acquisition has a fresh token, so here it is another caller.
 *
 * What must hold:
 *  (1) at most one caller believes that it has the lock, and not for longer than the server does;
 *  (2) a later acquisition has a greater fence; nothing is written after a greater fence; the write of
 *      a caller that believes that it has the lock is accepted;
 *  (3) a token whose caller gave up and was cleaned up has neither the lock nor a ticket. Before
 *      that, or if the caller was killed, it has the lock for at most a window (granted from the queue,
 *      unclaimed) or ORPHAN (a request takes it when it is just not late, and a lost claim arrives as that
 *      lease ends);
 *  (4) a caller that does not give up gets the lock or an error: there is no state without a next step
 *      in which a caller still waits, and no cycle (with -DNP), so every behaviour gets there.
 *
 * Left out: extend, adopt, jobs, priorities, max_waiters, running out of memory, and the
 * server's own faults (restart, failover, a clock that steps), after which there may be two holders.
 * Simpler than the code:
 *  - Time is in ticks; clocks run equally fast and are compared exactly. Within a tick TIME stands still,
 *    from one to the next it passes every fence.
 *  - A waiter may check the queue at every tick, and must if nothing else happens. So no waiter needs the
 *    message that it is the head (notify_head), or that it took the lock itself (`+`).
 *  - A ticket keeps its place even if the reply with the place was lost.
 *  - The record has no previous_token: a repeated release that it would answer finds `missing` here.
 *  - A killed waiter leaves nothing but its ticket (its connection breaks at once).
 *
 * Without one of these guards (-D) a property must fail:
 *   NO_DEADLINE  acquire and wait carry out late requests (3)       NO_OWNER  release checks no owner (1)
 *   NO_LATER  no second abandon when a lost request is late (3)     NO_FENCE  the resource compares nothing (2)
 *   NO_RAISE  a fence is the server's time alone (2)                NO_CHECK  waiters rely on messages (4)
 *   NO_BEFORE  a lease is counted from its reply (1)
 */
#ifndef CALLERS
#define CALLERS 3
#endif
#ifndef LOST
#define LOST 1                   /* how often a connection breaks under a request */
#endif
#ifndef KILLED
#define KILLED 1                 /* how many are killed, while they wait or hold */
#endif
#ifndef GIVE_UP
#define GIVE_UP 2                /* how many give up, anywhere on their way to the lock */
#endif
#ifdef SHORT
#define TTL 2
#define CLAIM 1
#define TOMBSTONE 1
#define DEADLINE 1
#else
#define TTL 3
#define CLAIM 2                  /* CLAIM_MS */
#define TOMBSTONE 2              /* TOMBSTONE_MS */
#define DEADLINE 2               /* how long a caller waits for a reply */
#endif
#define ORPHAN (DEADLINE + 2 * TTL)
#define N 3
#define NO_CALLER N

mtype = { ACQUIRE, WAIT, CLAIM_IT, RELEASE, HAND_OVER };                 /* requests */
mtype = { OURS, TAKEN, QUEUED, LATE, CLAIMED, MISSING, RELEASED, WAITED };  /* replies */

typedef Request { mtype verb; byte fence; byte due }    /* due: until its deadline */
typedef Caller {
  Request in_flight;                /* the caller waits for its reply */
  Request orphans[2];               /* in flight; its caller does not read the reply */
  mtype reply; byte fence; byte left;
  byte sent;                        /* what is left of a lease from the last sending on */
  byte expires;                     /* how long until the last request is late */
  bool has_orphan; byte orphan_left;   /* a lost request may still arrive; until when */
  byte message; byte message_left;  /* the fence that was granted, and how long it is certain */
  bool check_later;                 /* waits until it checks the queue again */
  byte valid;                       /* for how long it believes that the lock is its */
  bool abandoning; bool later;      /* abandon runs in the background */
  bool gone; byte gone_for;         /* it has ended; for how long */
  bool killed; bool unknown;        /* killed; its release had an unknown outcome */
  bool queued; byte place           /* its ticket */
}
Caller callers[N];
#define self callers[c]

bool held; byte owner = NO_CALLER; byte fence; bool waited; byte left;   /* the record; no key: left 0 */
bool unclaimed;                     /* granted from the queue, and neither claimed nor checked since */
byte places;                        /* how many places were assigned */
byte clock = 1; byte last;          /* TIME, in fences; the last fence of all */
byte greatest;                      /* the greatest fence at the resource */
byte started, lost, killed, gave_up;
hidden byte i, first, f, chosen;     /* locals and replies of the scripts */
hidden mtype reply; hidden byte reply_fence, reply_left;

#define cleaned(i) (callers[i].gone && !callers[i].abandoning && !callers[i].later && !callers[i].killed && !callers[i].unknown)

inline check() {
  i = 0;
  do
  :: i < N ->
     assert(!callers[i].valid || (held && owner == i && left >= callers[i].valid));     /* (1) */
     assert(!cleaned(i) || (!callers[i].queued && !(held && owner == i)));          /* (3) */
     i++
  :: else -> break
  od;
  i = 0
}

/* The scripts. */

inline next_fence() {               /* include/fence */
  f = clock;
#ifndef NO_RAISE
  if :: left && fence >= f -> f = fence + 1 :: else fi;
#endif
  assert(f > last);                 /* (2) */
  last = f
}

inline find_first() {               /* ZRANGE 0 0 */
  first = NO_CALLER; i = 0;
  do
  :: i < N ->
     if
     :: callers[i].queued && (first == NO_CALLER || callers[i].place < callers[first].place) -> first = i
     :: else
     fi;
     i++
  :: else -> break
  od
}

inline grant_next(own) {            /* include/grant_next: to the first waiter that can be reached */
  chosen = NO_CALLER;
  find_first();
  do
  :: chosen == NO_CALLER && first != NO_CALLER ->
     callers[first].queued = false;
     if
     :: callers[first].killed && first != own -> find_first()     /* PUBLISH has no receiver */
     :: else ->
        chosen = first;
        next_fence();
        held = true; owner = chosen; fence = f; waited = true;
        if
        :: chosen == own -> left = TTL; unclaimed = false
        :: else ->
           left = CLAIM; unclaimed = true;
           if :: !callers[chosen].gone -> callers[chosen].message = f; callers[chosen].message_left = CLAIM :: else fi
        fi
     fi
  :: else -> break
  od
}

inline release_and_grant_next() {   /* the include: hand over, or leave a tombstone */
  grant_next(NO_CALLER);
  if :: chosen == NO_CALLER -> held = false; waited = false; left = TOMBSTONE; unclaimed = false :: else fi
}

inline take(w) { next_fence(); held = true; owner = c; fence = f; left = TTL; waited = w; unclaimed = false }
inline answer(r) { reply = r; reply_fence = fence; reply_left = left }

#ifdef NO_DEADLINE
#define is_late(request) false
#else
#define is_late(request) (request.due == 0)
#endif
#ifdef NO_OWNER
#define is_ours(request) true
#else
#define is_ours(request) (owner == c && fence == request.fence)
#endif

inline serve(request) {
  if
  :: request.verb == ACQUIRE ->     /* acquire */
     if
     :: held && owner == c -> answer(OURS)                      /* 'owned' */
     :: held && owner != c -> answer(TAKEN)
     :: !held && is_late(request) -> answer(LATE)
     :: else -> take(left && waited); answer(OURS)
     fi
  :: request.verb == WAIT ->     /* wait */
     if
     :: is_late(request) -> answer(LATE)
     :: !is_late(request) && held && owner == c -> left = TTL; unclaimed = false; answer(OURS)
     :: else ->
        if :: !self.queued -> self.queued = true; if :: !self.place -> places++; self.place = places :: else fi :: else fi;
        if
        :: held -> waited = true; answer(QUEUED)
        :: else ->
           grant_next(c);              /* to itself if no other caller waits */
           if
           :: chosen == c -> find_first(); waited = (first != NO_CALLER); answer(OURS)
           :: else -> answer(QUEUED)
           fi
        fi
     fi
  :: request.verb == CLAIM_IT ->    /* claim */
     if
     :: held && waited && owner == c && fence == request.fence ->
        left = TTL; unclaimed = false; answer(CLAIMED)
     :: else -> answer(MISSING)
     fi
  :: else ->                        /* release, hand_over */
     if
     :: left && is_ours(request) ->
        if
        :: !held -> answer(RELEASED)                            /* 'already' */
        :: held && waited && request.verb == RELEASE -> answer(WAITED)
        :: else -> release_and_grant_next(); answer(RELEASED)
        fi
     :: else -> answer(MISSING)
     fi
  fi;
  request.verb = 0; request.fence = 0; request.due = 0;
  check()
}

inline abandon() {                  /* abandon */
  self.queued = false;
  if :: held && owner == c -> release_and_grant_next() :: else fi;
  check()
}

proctype network(byte c) {
end:
  do
  :: d_step { self.in_flight.verb -> serve(self.in_flight);
              self.reply = reply; self.fence = reply_fence; self.left = reply_left }
  :: d_step { self.orphans[0].verb -> serve(self.orphans[0]) }
  :: d_step { self.orphans[1].verb -> serve(self.orphans[1]) }
  :: d_step { self.abandoning -> self.abandoning = false; abandon() }
  :: d_step { self.later && !self.orphan_left -> self.later = false; abandon() }
  od
}

/* The callers: lualock/_protocol. */

inline forget() { self.reply = 0; self.fence = 0; self.left = 0 }

inline send(v, lease_fence) {
  self.in_flight.verb = v; self.in_flight.fence = lease_fence; forget();
  self.sent = (v == RELEASE || v == HAND_OVER -> 0 : TTL);
  self.in_flight.due = (v == ACQUIRE || v == WAIT -> DEADLINE : 0); self.expires = self.in_flight.due
}

#define keep_orphan(n) \
  self.orphans[n].verb = self.in_flight.verb; self.orphans[n].fence = self.in_flight.fence; \
  self.orphans[n].due = self.in_flight.due

inline leave_behind() {             /* the caller no longer waits for the reply */
  if
  :: self.in_flight.verb && !self.orphans[0].verb ->
     keep_orphan(0)
  :: self.in_flight.verb && self.orphans[0].verb && !self.orphans[1].verb ->
     keep_orphan(1)
  :: else
  fi;
  self.in_flight.verb = 0; self.in_flight.fence = 0; self.in_flight.due = 0; forget()
}

inline orphan_it() { leave_behind(); self.has_orphan = true; self.orphan_left = self.expires }

inline finish() {                   /* only requests in flight still matter */
  leave_behind();
#ifndef NO_LATER
  self.later = self.has_orphan && !self.killed;
#endif
  self.has_orphan = false; self.sent = 0; self.expires = 0; self.message = 0; self.message_left = 0;
  self.check_later = false; self.valid = 0; self.orphan_left = (self.later -> self.orphan_left : 0);
  by_queue = false; again = false; lease = 0;
  self.gone = true; check()
}

#ifdef NO_BEFORE
#define counted(n) n
#else                               /* from before the request was sent */
#define counted(n) (n + self.sent > TTL -> n + self.sent - TTL : 0)
#endif
#define loses (lost < LOST && (self.in_flight.verb || self.reply))
#define gives_up (gave_up < GIVE_UP)

inline win() {                      /* a reply, perhaps to a repeated request, grants the lock */
  lease = self.fence; self.valid = counted(self.left); self.message = 0; self.message_left = 0; self.sent = 0; self.expires = 0;
  forget(); check()
}
inline release() { send((by_queue -> HAND_OVER : RELEASE), lease) }

proctype caller(byte c) {
  bool by_queue, again; byte lease;
  atomic { started == c -> started++; send(ACQUIRE, 0) }

acquiring:                          /* acquire.py */
  if
  :: atomic { self.reply == OURS -> win(); goto holding }
  :: atomic { self.reply == TAKEN -> send(WAIT, 0); goto checking }
  :: atomic { self.reply == LATE -> goto leave }
  :: atomic { loses -> lost++; orphan_it(); send(ACQUIRE, 0); goto acquiring }
  :: atomic { gives_up -> gave_up++; orphan_it(); goto leave }
  fi;

checking:                           /* wait.py */
  if
  :: atomic { self.reply == OURS -> by_queue = true; win(); goto holding }
  :: atomic { self.reply == QUEUED ->
       if :: self.message <= self.fence -> self.message = 0; self.message_left = 0 :: else fi;  /* of an earlier grant */
       self.check_later = true; self.sent = 0; self.expires = 0; forget(); goto waiting }
  :: atomic { self.reply == LATE -> goto leave }
  :: atomic { loses -> lost++; orphan_it(); send(WAIT, 0); goto checking }
  :: atomic { gives_up -> gave_up++; orphan_it(); goto leave }
  fi;

waiting:
  if
#ifndef NO_CHECK
  :: atomic { !self.check_later -> send(WAIT, 0); goto checking }
#endif
  :: atomic { self.message -> self.check_later = false; goto granted }
  :: atomic { killed < KILLED -> killed++; self.killed = true; goto dead }
  :: atomic { gives_up -> gave_up++; goto leave }
  fi;

granted:                            /* claim in wait.py */
  atomic {
    lease = self.message; by_queue = true; send(CLAIM_IT, lease);
    self.valid = (2 * self.message_left > CLAIM -> self.message_left : 0);
    self.message = 0; self.message_left = 0;
    if :: self.valid -> check(); goto holding :: else fi
  };
claiming:
  if
  :: atomic { self.reply == CLAIMED -> self.valid = self.sent; forget(); check(); goto holding }
  :: atomic { self.reply == MISSING -> send(WAIT, 0); goto checking }
  :: atomic { loses -> lost++; leave_behind(); send(CLAIM_IT, lease); goto claiming }
  :: atomic { gives_up -> gave_up++; leave_behind(); goto leave }
  fi;

leave:                              /* abandon in wait.py, give_back in abandon.py */
  atomic { self.abandoning = true; finish(); goto end };

holding:                            /* lease */
  if
  :: atomic { self.reply == CLAIMED ->
       self.valid = (self.sent > self.valid -> self.sent : self.valid); self.sent = 0; forget(); check(); goto holding }
  :: atomic { self.reply == MISSING -> self.valid = 0; forget(); goto holding }
  :: atomic { self.valid && greatest < lease -> goto writing }
  :: atomic { killed < KILLED -> killed++; self.killed = true; goto dead }
  :: atomic { loses -> lost++; leave_behind(); goto holding }
  :: atomic { !self.in_flight.verb -> self.valid = 0; release() }  /* one connection keeps the order */
  fi;

releasing:                          /* release.py */
  if
  :: atomic { self.reply == WAITED -> by_queue = true; release(); goto releasing }
  :: atomic { self.reply == RELEASED || self.reply == MISSING -> finish(); goto end }
  :: atomic { loses && !again -> lost++; again = true; leave_behind(); release(); goto releasing }
  :: atomic { loses && again -> lost++; self.unknown = true; finish(); goto end }
  fi;

writing:                            /* it has checked its lease, and may be paused before it writes */
  atomic {
    if
#ifndef NO_FENCE                    /* fencing/scripts/fenced_set */
    :: lease < greatest -> assert(!self.valid)
#endif
    :: else -> assert(lease >= greatest); greatest = lease                                /* (2) */
    fi
  };
  goto holding;

dead:
  atomic { finish() };
end:
  skip
}

/* Time passes only while a timer runs, so a caller with nothing to wait for acts in the end. */

#define down(x) x = (x -> x - 1 : 0)
#define runs_out(c) (callers[c].check_later || callers[c].valid || callers[c].in_flight.due || callers[c].orphans[0].due || \
                     callers[c].orphans[1].due || (callers[c].later && callers[c].orphan_left))
#define has_deadline(request) (request.verb == ACQUIRE || request.verb == WAIT)
#define nothing_left(c) (!self.abandoning && !self.later && !self.queued && owner != c && \
                         !self.orphans[0].verb && !self.orphans[1].verb)

proctype ticking() {
  byte c;
  do
  :: d_step {
       left || runs_out(0) || runs_out(1) || runs_out(2) ->
       c = 0;
       do
       :: c < CALLERS ->
          down(self.in_flight.due); down(self.orphans[0].due); down(self.orphans[1].due);
          down(self.sent); down(self.expires); down(self.orphan_left); down(self.message_left); down(self.valid);
          self.check_later = false;
#ifndef NO_DEADLINE
          /* It is refused, whenever it arrives. */
          if :: has_deadline(self.orphans[0]) && !self.orphans[0].due -> self.orphans[0].verb = 0 :: else fi;
          if :: has_deadline(self.orphans[1]) && !self.orphans[1].due -> self.orphans[1].verb = 0 :: else fi;
#endif
          if
          :: self.gone && nothing_left(c) -> self.gone_for = 0
          :: self.gone && !nothing_left(c) && self.gone_for < ORPHAN -> self.gone_for++
          :: else
          fi;
          c++
       :: else -> break
       od;
       c = 0;
       down(left);
       if :: !left -> held = false; waited = false; owner = NO_CALLER; fence = 0; unclaimed = false :: else fi;
       clock = last + 1;
       assert(!held || !callers[owner].gone || unclaimed || callers[owner].gone_for < ORPHAN);      /* (3) */
       check()
     }
  :: timeout -> break
  od;
  atomic {
    c = 0;
    do
    :: c < CALLERS -> assert(self.gone); c++                                              /* (4) */
    :: else -> break
    od
  }
}

init {
  atomic {
    byte k = 0;
    do                              /* a fault that never happens does not free a stuck caller */
    :: lost < LOST -> lost++
    :: killed < KILLED -> killed++
    :: gave_up < GIVE_UP -> gave_up++
    :: break
    od;
    do :: k < CALLERS -> run caller(k); run network(k); k++ :: else -> break od;
    run ticking()
  }
}

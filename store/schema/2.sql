-- Durable lanes. Times are Unix milliseconds, 0 where there is none.

-- What goes out: where each lane stands.
CREATE TABLE out_lane (
	id         INTEGER PRIMARY KEY,
	peer       TEXT NOT NULL,
	lane       TEXT NOT NULL,
	last_epoch INTEGER NOT NULL DEFAULT 0, -- the newest item ever appended
	last_seq   INTEGER NOT NULL DEFAULT 0,
	safe_epoch INTEGER NOT NULL DEFAULT 0, -- the peer never asks again up to here
	safe_seq   INTEGER NOT NULL DEFAULT 0,
	items      INTEGER NOT NULL DEFAULT 0, -- in outbox
	bytes      INTEGER NOT NULL DEFAULT 0,
	UNIQUE (peer, lane)
) STRICT;

-- id is out_lane.id << 40 | seq, so that a lane is one range of keys. A table with
-- rowids keeps bodies out of the interior pages; body stands last, so that the
-- other columns are read without it.
CREATE TABLE outbox (
	id      INTEGER PRIMARY KEY,
	epoch   INTEGER NOT NULL, -- never falls as seq grows
	kind    INTEGER NOT NULL,
	at      INTEGER NOT NULL,
	expires INTEGER NOT NULL,
	size    INTEGER NOT NULL, -- what it counts against quotas
	mid     BLOB NOT NULL,
	conv    TEXT NOT NULL,
	body    BLOB NOT NULL
) STRICT;

-- What comes in: where each lane stands.
CREATE TABLE in_lane (
	id           INTEGER PRIMARY KEY,
	peer         TEXT NOT NULL,
	lane         TEXT NOT NULL,
	cursor_epoch INTEGER NOT NULL DEFAULT 0, -- the newest item taken
	cursor_seq   INTEGER NOT NULL DEFAULT 0,
	seen         INTEGER NOT NULL DEFAULT 0, -- the highest epoch in which a stream began
	arrived      INTEGER NOT NULL DEFAULT 0, -- items ever put into inbox
	UNIQUE (peer, lane)
) STRICT;

-- Taken from a peer, and not with the local server yet. id is in_lane.id << 40 |
-- the number of its arrival, which no other item of the lane ever has.
CREATE TABLE inbox (
	id      INTEGER PRIMARY KEY,
	epoch   INTEGER NOT NULL,
	seq     INTEGER NOT NULL,
	kind    INTEGER NOT NULL,
	at      INTEGER NOT NULL,
	expires INTEGER NOT NULL,
	mid     BLOB NOT NULL,
	conv    TEXT NOT NULL,
	body    BLOB NOT NULL
) STRICT;

-- Ids that were taken lately, so that none is taken twice.
CREATE TABLE taken (
	in_lane INTEGER NOT NULL,
	mid     BLOB NOT NULL,
	at      INTEGER NOT NULL,
	PRIMARY KEY (in_lane, mid)
) STRICT, WITHOUT ROWID;

CREATE INDEX taken_at ON taken (at);

-- What was given up.
CREATE TABLE dead (
	id      INTEGER PRIMARY KEY,
	peer    TEXT NOT NULL,
	lane    TEXT NOT NULL,
	epoch   INTEGER NOT NULL,
	seq     INTEGER NOT NULL,
	kind    INTEGER NOT NULL,
	at      INTEGER NOT NULL,
	expires INTEGER NOT NULL,
	died    INTEGER NOT NULL,
	told    INTEGER NOT NULL DEFAULT 0, -- whether its sender knows
	reason  TEXT NOT NULL, -- short code
	detail  TEXT NOT NULL, -- for people
	mid     BLOB NOT NULL,
	conv    TEXT NOT NULL,
	body    BLOB NOT NULL
) STRICT;

CREATE INDEX dead_peer ON dead (peer);
CREATE INDEX dead_untold ON dead (peer) WHERE told = 0;
CREATE INDEX dead_told ON dead (died) WHERE told = 1;

-- A database of schema version 6, as a yggate of that time left it. Frozen: a
-- change here would make the upgrade test prove nothing.
PRAGMA user_version = 6;
PRAGMA application_id = 2036819828;

-- Times are Unix seconds. Grid ids are the 52 characters of federation.GridID.

-- Single values; "epoch" is the last one taken.
CREATE TABLE meta (
	key   TEXT PRIMARY KEY,
	value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- What this grid last said about itself: seq grows when digest changes.
CREATE TABLE own_descriptor (
	id     INTEGER PRIMARY KEY CHECK (id = 1),
	grid   TEXT NOT NULL,
	rot    INTEGER NOT NULL,
	seq    INTEGER NOT NULL,
	digest BLOB NOT NULL,
	issued INTEGER NOT NULL
) STRICT;

CREATE TABLE peer (
	grid          TEXT PRIMARY KEY,
	name          TEXT NOT NULL,
	key           BLOB NOT NULL UNIQUE, -- current grid key
	state         TEXT NOT NULL CHECK (state IN ('pending', 'active', 'paused', 'blocked', 'removed')),
	created       INTEGER NOT NULL,
	last_heard    INTEGER NOT NULL DEFAULT 0,
	rot           INTEGER NOT NULL,
	seq           INTEGER NOT NULL,
	envelope      BLOB NOT NULL, -- descriptor, the bytes as signed
	introduced_by TEXT           -- a grid, where a common peer introduced it
) STRICT, WITHOUT ROWID;

-- The name of a removed peer is free again.
CREATE UNIQUE INDEX peer_name ON peer (name) WHERE state != 'removed';

CREATE TABLE domain_claim (
	proto   TEXT NOT NULL,
	domain  TEXT NOT NULL, -- normalised
	grid    TEXT NOT NULL REFERENCES peer (grid),
	status  TEXT NOT NULL CHECK (status IN ('active', 'pending', 'conflict')),
	created INTEGER NOT NULL,
	PRIMARY KEY (proto, domain, grid)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX domain_claim_active ON domain_claim (proto, domain) WHERE status = 'active';

CREATE TABLE invite (
	id      BLOB PRIMARY KEY,
	key     BLOB NOT NULL, -- for the HMAC; the secret itself is not kept
	name    TEXT NOT NULL,
	expect  TEXT NOT NULL, -- JSON array of domains
	created INTEGER NOT NULL,
	expires INTEGER NOT NULL,
	used_by TEXT,          -- the grid that used it
	used_at INTEGER,
	revoked INTEGER        -- when
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
	id     INTEGER PRIMARY KEY AUTOINCREMENT,
	at     INTEGER NOT NULL,
	event  TEXT NOT NULL,
	peer   TEXT NOT NULL, -- grid id or node address, where there is one
	detail TEXT NOT NULL
) STRICT;

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

-- The signing keys of the Matrix servers of peers. Times are Unix milliseconds, 0
-- where there is none. Keys are a JSON object, of key by key id.
CREATE TABLE matrix_key (
	server      TEXT PRIMARY KEY, -- server name, normalised
	peer        TEXT NOT NULL,    -- that held the claim when they were fetched
	keys        TEXT NOT NULL,
	fetched     INTEGER NOT NULL,
	valid_until INTEGER NOT NULL,
	changed     INTEGER NOT NULL DEFAULT 0,   -- when keys were last other ones
	before      TEXT NOT NULL DEFAULT '{}'    -- and which
) STRICT;

-- The session with the operator's MQTT broker. session is the client id.

-- What marks the messages of one life of the session at the broker.
CREATE TABLE mqtt_session (
	session TEXT PRIMARY KEY,
	life    BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- The broker's packet ids: how often each was released, and when last.
CREATE TABLE mqtt_in (
	session  TEXT NOT NULL,
	id       INTEGER NOT NULL,
	released INTEGER NOT NULL,
	turn     INTEGER NOT NULL, -- grows with each message; 0: used again since
	PRIMARY KEY (session, id)
) STRICT, WITHOUT ROWID;

-- Our packet ids: the message that last had each, and how far the broker has it.
CREATE TABLE mqtt_out (
	session TEXT NOT NULL,
	id      INTEGER NOT NULL,
	key     BLOB NOT NULL, -- a hash
	stage   INTEGER NOT NULL,
	turn    INTEGER NOT NULL, -- grows with each message
	PRIMARY KEY (session, id)
) STRICT, WITHOUT ROWID;

-- What the broker may have a subscription of.
CREATE TABLE mqtt_filter (
	session TEXT NOT NULL,
	filter  TEXT NOT NULL,
	PRIMARY KEY (session, filter)
) STRICT, WITHOUT ROWID;

-- The retained messages that a peer was last told of.
CREATE TABLE mqtt_retained (
	peer  TEXT NOT NULL,
	topic TEXT NOT NULL,
	hash  BLOB NOT NULL, -- of the message
	PRIMARY KEY (peer, topic)
) STRICT, WITHOUT ROWID;

-- Names that a grid held and claims no more, as when its operator stops a protocol
-- for a while. It gets them back when it claims them again.
CREATE TABLE domain_released (
	grid     TEXT NOT NULL REFERENCES peer (grid),
	proto    TEXT NOT NULL,
	domain   TEXT NOT NULL, -- normalised
	released INTEGER NOT NULL,
	PRIMARY KEY (grid, proto, domain)
) STRICT, WITHOUT ROWID;

-- Mesh peerings that came with an accepted invite.
CREATE TABLE "peering" (
	uri     TEXT NOT NULL,
	grid    TEXT NOT NULL, -- whose invite named it
	created INTEGER NOT NULL,
	PRIMARY KEY (uri, grid)
) STRICT, WITHOUT ROWID;

INSERT INTO meta VALUES ('epoch', 1795000000);
INSERT INTO own_descriptor VALUES (1, 'gridaaaa', 1, 1795000001, x'00ff', 1795000000);
INSERT INTO peer VALUES ('gridbbbb', 'bob', x'01', 'active', 1795000000, 1795000002, 0, 42, x'7b7d', NULL);
INSERT INTO peer VALUES ('gridcccc', 'carol', x'02', 'removed', 1795000000, 0, 0, 7, x'7b7d', 'gridbbbb');
INSERT INTO domain_claim VALUES ('xmpp', 'bob.grid', 'gridbbbb', 'active', 1795000000);
INSERT INTO domain_claim VALUES ('xmpp', 'bob.grid', 'gridcccc', 'conflict', 1795000001);
INSERT INTO invite VALUES (x'0a', x'0b', 'carol', '["carol.grid"]', 1795000000, 1795259200, 'gridcccc', 1795000100, NULL);
INSERT INTO invite VALUES (x'0c', x'0d', 'dave', '[]', 1795000000, 1795259200, NULL, NULL, 1795000200);
INSERT INTO peering VALUES ('tls://192.0.2.1:443', 'gridbbbb', 1795000000);
INSERT INTO audit VALUES (1, 1795000000, 'peer-approve', 'gridbbbb', 'bob');
INSERT INTO out_lane VALUES (1, 'gridbbbb', 'chat', 1795000000, 8, 1795000000, 6, 2, 300);
INSERT INTO outbox VALUES (1 << 40 | 7, 1795000000, 1, 1795000000123, 1795600000000, 77, x'aa01', 'alice@a.grid bob@b.grid', x'3c6d2f3e');
INSERT INTO outbox VALUES (1 << 40 | 8, 1795000000, 1, 1795000000124, 0, 77, x'aa02', 'alice@a.grid bob@b.grid', x'3c6d2f3e');
INSERT INTO in_lane VALUES (1, 'gridbbbb', 'chat', 1794999999, 12, 1795000000, 5);
INSERT INTO inbox VALUES (1 << 40 | 5, 1794999999, 12, 1, 1795000000125, 0, x'bb12', 'bob@b.grid alice@a.grid', x'3c6d2f3e');
INSERT INTO taken VALUES (1, x'bb12', 1795000000126);
INSERT INTO dead VALUES (3, 'gridbbbb', 'chat', 1795000000, 5, 1, 1794000000000, 1795000000000, 1795000000127, 0, 'expired', 'away', x'aa00', 'alice@a.grid bob@b.grid', x'3c6d2f3e');
INSERT INTO matrix_key VALUES ('bob.grid', 'gridbbbb', '{"ed25519:2":"bmV3"}', 1795000000000, 1795086400000, 1794990000000, '{"ed25519:1":"b2xk"}');
INSERT INTO mqtt_session VALUES ('yggate-aaaa', x'0102');
INSERT INTO mqtt_in VALUES ('yggate-aaaa', 65535, 7, 88);
INSERT INTO mqtt_out VALUES ('yggate-aaaa', 8192, x'00112233445566778899aabbccddeeff', 2, 77);
INSERT INTO mqtt_filter VALUES ('yggate-aaaa', 'home/+/temp');
INSERT INTO mqtt_retained VALUES ('gridbbbb', 'home/hall/temp', x'0a0b');
INSERT INTO domain_released VALUES ('gridbbbb', 'matrix', 'bob.grid', 1795000003);

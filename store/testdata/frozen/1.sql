-- A database of schema version 1, as a yggate of that time left it. Frozen: a
-- change here would make the upgrade test prove nothing.
PRAGMA user_version = 1;
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

-- Mesh peerings that came with an accepted invite.
CREATE TABLE peering (
	uri     TEXT PRIMARY KEY,
	grid    TEXT NOT NULL, -- whose invite named it
	created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
	id     INTEGER PRIMARY KEY AUTOINCREMENT,
	at     INTEGER NOT NULL,
	event  TEXT NOT NULL,
	peer   TEXT NOT NULL, -- grid id or node address, where there is one
	detail TEXT NOT NULL
) STRICT;

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

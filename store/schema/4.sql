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

-- A minimal Prosody for a.grid behind yggate.
daemonize = false
run_as_root = true
pidfile = "/srv/xmpp/prosody.pid"
data_path = "/srv/xmpp/data"
log = { info = "/srv/xmpp/log/prosody.log" }
modules_enabled = {
	"roster"; "saslauth"; "tls"; "dialback"; "disco"; "ping"; "smacks"; "posix";
}
c2s_interfaces = { "127.0.10.1" }
c2s_ports = { 5222 }
c2s_require_encryption = true
s2s_interfaces = { "127.0.10.1" }
s2s_ports = { 5269 }
authentication = "internal_hashed"
storage = "internal"

VirtualHost "a.grid"
	ssl = { key = "/var/lib/yggate/xmpp/server.pem"; certificate = "/var/lib/yggate/xmpp/server.pem" }

Component "conference.a.grid" "muc"
	muc_room_locking = false

Include "/srv/xmpp/conf.d/*.cfg.lua"

// Package mailsink is a mail server that delivers nothing: it takes every mail
// over SMTP, keeps it, and shows it as a page and as JSON. outflow-dev uses it
// as the inbox of a first look, and tests use it as the other end of the
// notifier.
//
// What holds:
//   - A mail that was answered with 250 is in the inbox, decoded (RFC 2047
//     headers, quoted-printable and base64 bodies, any charset that browsers
//     know), and, with a directory, on disk: one .eml file each, which any mail
//     program opens. Files are read back at start; one that can't be read is
//     reported and left alone.
//   - Only the newest Config.Max mails are kept. Older ones go, file and all.
//   - Nothing in a mail can act on the page that shows it: text is escaped, HTML
//     is shown in a sandboxed frame without scripts, forms, links or network.
//   - Faults can be asked for, to see how a sender copes: see [Fault].
//
// It is meant for loopback. It has no users, no TLS and no access control.
package mailsink

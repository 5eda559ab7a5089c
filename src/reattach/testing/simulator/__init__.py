"""A simulator that tries to break every promise: one seed, one story, nothing left to chance.

Two nodes of the production registry, committer and hosts share one database; four devices run the
production core of a client. Their time is a loop's own (`loop`), and everything that can go wrong
does: in the `database`, on the bus and in the `node`s, in the `network`, on the `device`s and in
the heads of their `user`s. The `witness` sees every frame and every row, and knows the promises.
`story` decides what happens, `world` lets it happen, `run` plays many seeds.
"""

"""The engine of sites: NVFlare 2.9 carries the bytes. No other file imports it.

A coordinator makes one kit per site (`make_kits`), runs the server (`serve`) and submits jobs (`submit`); a hospital
runs `start_site`. What NVFlare 2.9 does by itself, and what is done here instead:

* it streams job logs and a site's error log to the server; the kits have no streamer, ``allow_log_streaming`` is false;
* a project administrator may do anything, also run shell commands at a site, and a site believes the role that the
  server tells ("super" passes every check); a site started here has no processor for such commands, and `JobCheck`
  refuses every job that is not the one job of this package;
* jobs need no signature; here a site runs only jobs that are signed with the coordinator's kit;
* the class allow list of a kit has all that NVFlare ships; here one class of ours at a site, one at the server;
* the server listens on all interfaces unless its host is a loopback address; here on ``bind`` alone;
* kits are not signed; here they are, and NVFlare does not start one whose certificates or connection were changed;
* the server keeps all jobs of a machine in /tmp/nvflare; here in its kit;
* ``start.sh`` starts a program that fails again and again; the kits have no scripts, and nothing restarts a site but
  its administrator. A worker that is killed is started again, at most `RESTARTS` times in one job;
* a worker that dies ends the job of everybody; here that site is lost and the job goes on (`SiteLauncher`);
* a message is held about five times; here in pieces (`FlareCourier`).
"""

from fedcmp.sites.nvflare.console import abort, follow, submit
from fedcmp.sites.nvflare.identity import KitIdentity
from fedcmp.sites.nvflare.kits import check_kit, make_kits
from fedcmp.sites.nvflare.processes import serve, start_site

__all__ = ["KitIdentity", "abort", "check_kit", "follow", "make_kits", "serve", "start_site", "submit"]

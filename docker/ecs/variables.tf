variable "name" {
  description = "What everything is called, in part or in whole: the service, its roles, alarms and log group."
  type        = string
  default     = "walhouse"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,31}$", var.name))
    error_message = "Up to 32 lower-case letters, digits and hyphens, a letter first."
  }
}

# The queues.

variable "prefix" {
  description = "What the names of the queues begin with: queue.prefix."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{0,48}$", var.prefix))
    error_message = "Up to 48 letters, digits, hyphens and underscores."
  }
}

variable "fifo" {
  description = "FIFO queues: queue.fifo. A queue can not be changed from one kind to the other; it is made anew."
  type        = bool
  default     = false
}

variable "timeouts" {
  description = "Seconds that the handling of a message may take, by queue, where [workers] has a timeout of its own."
  type        = map(number)
  default     = {}

  validation {
    condition     = length(setsubtract(keys(var.timeouts), ["data-sync", "async-operations", "audit-log"])) == 0
    error_message = "The queues are data-sync, async-operations and audit-log."
  }
}

# The task.

variable "image" {
  description = "The image of docker/Dockerfile, with its digest or a tag that does not move."
  type        = string
}

variable "ecr_repository_arn" {
  description = "The repository that the image comes from, if it is one of ECR."
  type        = string
  default     = null
}

variable "configuration" {
  description = "walhouse.toml, without passwords and without what these files set themselves (see README.md)."
  type        = string

  validation {
    condition     = can(regex("(?m)^\\s*\\[queue\\]", var.configuration))
    error_message = "It needs a section [queue], which may be empty: without it no event is sent."
  }
}

variable "secrets" {
  # WALHOUSE__SOURCE__PASSWORD = "arn:aws:secretsmanager:…:secret:shop", or "…:password::" for a key of one in JSON.
  description = "Keys of the configuration, and the secret of Secrets Manager in which the value of each is."
  type        = map(string)

  validation {
    condition     = alltrue([for name in keys(var.secrets) : startswith(name, "WALHOUSE__")])
    error_message = "Each name is WALHOUSE__SECTION__KEY."
  }
}

variable "secrets_kms_key_arn" {
  description = "The key that the secrets are encrypted with, unless it is AWS's own for Secrets Manager."
  type        = string
  default     = null
}

variable "cpu" {
  description = "Units of the task's CPU; 1024 are one."
  type        = number
  default     = 1024
}

variable "memory" {
  description = "MiB of the task's memory. memory.budget and queue.budget are parts of it."
  type        = number
  default     = 2048
}

variable "architecture" {
  description = "What the image was built for: X86_64 or ARM64."
  type        = string
  default     = "X86_64"

  validation {
    condition     = contains(["X86_64", "ARM64"], var.architecture)
    error_message = "X86_64 or ARM64."
  }
}

variable "log_retention_days" {
  description = "How long logs are kept."
  type        = number
  default     = 30
}

# Where it runs.

variable "cluster" {
  description = "The name of an ECS cluster."
  type        = string
}

variable "vpc_id" {
  description = "The network."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets with a way to AWS: by NAT, or endpoints for SQS, Secrets Manager, Logs, ECR and S3."
  type        = list(string)
}

variable "postgres" {
  description = "The security group that PostgreSQL is in, and its port."
  type = object({
    security_group_id = string
    port              = optional(number, 5432)
  })
}

variable "clickhouse" {
  description = "The security group that ClickHouse is in, and its port."
  type = object({
    security_group_id = string
    port              = optional(number, 8123)
  })
}

variable "scraper_security_group_id" {
  description = "The security group of whoever scrapes /metrics; with null, nobody but the task itself reaches it."
  type        = string
  default     = null
}

# The object store.

variable "reports" {
  description = join(" ", [
    "The bucket of reports, of exports and of payloads that are too large for SQS, and what their keys begin with. With",
    "null there are no reports, and an event of more than 1 MiB waits, and the slot with it. expire_payloads sets the",
    "bucket's lifecycle rules to the one for payloads: a bucket has one set of rules, so if it has others, say false and",
    "add this one to them.",
  ])
  type = object({
    bucket          = string
    prefix          = optional(string, "walhouse")
    expire_payloads = optional(bool, false)
  })
  default = null

  validation {
    condition     = var.reports == null || can(regex("^[^/*?].*[^/*?]$", try(var.reports.prefix, "")))
    error_message = "The prefix has a character, and no slash at its ends."
  }
}

# The alarms.

variable "subscribers" {
  description = "Addresses for e-mail: critical is for the on-call and the lead engineer, warning for the on-call one."
  type = object({
    critical = list(string)
    warning  = list(string)
  })
}

variable "database_instance" {
  description = "The RDS instance that is replicated, for alarms on the WAL that its slots retain and on its disk; or null."
  type        = string
  default     = null
}

variable "retained_wal_gib" {
  description = "WAL that slots may retain before that alarm: well below max_slot_wal_keep_size and the free disk."
  type        = number
  default     = 10
}

variable "free_storage_gib" {
  description = "Disk that the RDS instance has to have left, or there is an alarm: more than it writes in an hour."
  type        = number
  default     = 10
}
